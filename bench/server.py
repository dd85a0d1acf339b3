"""The server under test: one that is started here, as a process of its own, or one that runs already."""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import psutil

from rill.bench.errors import BenchError
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

SERVE = (sys.executable, "-m", "rill.serve")
START_SECONDS = 60.0  # at most, until a server listens
STOP_SECONDS = 15.0  # at most, from SIGTERM to its end; beyond that it is killed
ANSWER_SECONDS = 10.0  # at most, for a running server's list of models
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # or channels to one server share one
CONNECTIONS = 8  # for each process of a server that has several: Linux deals them out, not quite evenly


@dataclass(frozen=True)
class Spent:
    """CPU seconds so far: of the server, and of everything that is neither the server nor this process."""

    server: float
    others: float

    def since(self, before: "Spent") -> "Spent":
        """What has been spent since then."""
        return Spent(self.server - before.server, max(self.others - before.others, 0.0))


@dataclass(frozen=True)
class Server:
    """`target` is HOST:PORT, `stub` makes what has its `Generate`; the rest is known only of one that was started here.

    `processes` are the one that was started, and those that it started; times and memory are of all together.

    `start_seconds` is from the start of the process to its "listening" line; `rest_megabytes` is its resident memory
    right after (a megabyte is 10^6 bytes).
    """

    target: str
    processes: tuple[psutil.Process, ...] = ()
    start_seconds: float | None = None
    rest_megabytes: float | None = None
    stub: Callable[[grpc.aio.Channel], Any] = TextGenerationStub
    connections: int = 1

    def spent(self) -> Spent | None:
        """What has been spent on this machine so far, the host's share of it (steal) included in `others`."""
        if not self.processes:
            return None
        times, machine = [process.cpu_times() for process in self.processes], psutil.cpu_times()
        server = sum(time.user + time.system for time in times)
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return Spent(server, busy - server - time.process_time())

    def peak_megabytes(self) -> float | None:
        """The most that was ever resident, where the system tells."""
        peaks = [_peak_megabytes(process.pid) for process in self.processes]
        return sum(peaks) if peaks and all(peaks) else None

    def megabytes(self) -> float | None:
        """Resident memory, in 10^6 bytes."""
        return sum(process.memory_info().rss for process in self.processes) / 1e6 if self.processes else None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """What has its `Generate`, over its `connections` in turn."""
        async with AsyncExitStack() as stack:
            channels = [grpc.aio.insecure_channel(self.target, OWN_CONNECTION) for _ in range(self.connections)]
            stubs = [self.stub(await stack.enter_async_context(channel)) for channel in channels]
            yield _InTurn(stubs) if self.connections > 1 else stubs[0]


class _InTurn:
    """The `Generate` of several stubs, in turn."""

    def __init__(self, stubs: Sequence[Any]) -> None:
        self._stubs = cycle(stubs)

    def Generate(self, request: Any) -> Any:
        """The next one's."""
        return next(self._stubs).Generate(request)


def _peak_megabytes(pid: int) -> float:
    """The most that was ever resident, in 10^6 bytes; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = (line.split() for line in status.read_text().splitlines()) if status.exists() else iter(())
    return next((int(words[1]) * 1024 / 1e6 for words in lines if words and words[0] == "VmHWM:"), 0.0)


def rill(bundle: Path, *options: str) -> list[str]:
    """The command of a server of `bundle` on a free port."""
    return [*SERVE, str(bundle), "--port", "0", *options]


@asynccontextmanager
async def own_server(command: Sequence[str], core: int | None) -> AsyncIterator[Server]:
    """A server that says where it is listening, kept on `core` if one is given; ended when the context is left.

    Raises BenchError if it does not start.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        with on_core(core):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # Linux shares the processor between sessions: in ours, the server would leave this process so little
                # of its own core that anything else on it held it up for a tenth of a second.
                start_new_session=True,
            )
        try:
            target = await _listening(process, log)
            seconds = time.perf_counter() - started
            started_here = psutil.Process(process.pid)
            server = Server(target, (started_here, *started_here.children()), seconds)
            yield replace(server, rest_megabytes=server.megabytes())
        finally:
            await _end(process)


async def _listening(process: asyncio.subprocess.Process, log: IO[bytes]) -> str:
    """The HOST:PORT of the "listening" line."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):  # `wait_for` may swallow Ctrl-C if the line comes with it
            line = (await process.stdout.readline()).decode()
    except TimeoutError:
        raise BenchError(f"the server did not listen within {START_SECONDS:.0f} s") from None
    if not re.match(r"\S+ listening on \S+:\d+", line):
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchError(f"the server did not start: {said[-1].removeprefix('error: ')}")
    return line.split()[3]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            # Not by `terminate`: it would take the end of a process that just ended from those who wait for it.
            os.kill(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def two_cores() -> tuple[int, int] | None:
    """One for the server and one for the client, if this process may use two; of different silicon where it can be."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    siblings = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/topology/thread_siblings_list")
    shared = siblings.read_text().strip() if siblings.exists() else ""
    apart = [core for core in cores[1:] if not _lists(shared, core)]
    return cores[0], (apart or cores[1:])[0]


def _lists(ranges: str, number: int) -> bool:
    """Whether a number is in a list such as "0,4-7"."""
    bounds = (part.partition("-") for part in ranges.split(",") if part)
    return any(int(least) <= number <= int(most or least) for least, _, most in bounds)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this thread, and what it starts, on one core meanwhile; None leaves it where it may be."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def served_name(target: str, model_id: str) -> str:
    """The name under which `target` serves the model. Raises BenchError if it does not, or cannot be reached."""
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            answer = await TextGenerationStub(channel).ListModels(pb.ListModelsRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise BenchError(f"{target}: {error.code().name}: {error.details()}") from None
    for model in answer.models:
        if model.model_id == model_id:
            return str(model.name)
    names = ", ".join(model.name for model in answer.models)
    raise BenchError(f"{target} does not serve this bundle, but {names or 'nothing'}; give its own --bundle")
