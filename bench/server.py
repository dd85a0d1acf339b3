"""The server under test: one that is started here, as a process of its own, or one that runs already."""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import psutil

from bench.errors import BenchError
from protos import rill_pb2 as pb
from protos.rill_pb2_grpc import TextGenerationStub

SERVE = (sys.executable, "-m", "serve")
START_SECONDS = 60.0  # at most, until a server listens
STOP_SECONDS = 15.0  # at most, from SIGTERM to its end; beyond that it is killed
ANSWER_SECONDS = 10.0  # at most, for a running server's list of models


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

    `start_seconds` is from the start of the process to its "listening" line; `rest_megabytes` is its resident memory
    right after (a megabyte is 10^6 bytes).
    """

    target: str
    process: psutil.Process | None = None
    start_seconds: float | None = None
    rest_megabytes: float | None = None
    stub: Callable[[grpc.aio.Channel], Any] = TextGenerationStub

    def spent(self) -> Spent | None:
        """What has been spent on this machine so far, the host's share of it (steal) included in `others`."""
        if self.process is None:
            return None
        times, machine = self.process.cpu_times(), psutil.cpu_times()
        server = times.user + times.system
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return Spent(server, busy - server - time.process_time())

    def peak_megabytes(self) -> float | None:
        """The most that was ever resident, where the system tells."""
        status = Path(f"/proc/{self.process.pid}/status") if self.process else None
        if status is None or not status.exists():
            return None
        lines = (line.split() for line in status.read_text().splitlines())
        return next((int(words[1]) * 1024 / 1e6 for words in lines if words and words[0] == "VmHWM:"), None)

    def megabytes(self) -> float | None:
        """Resident memory, in 10^6 bytes."""
        return self.process.memory_info().rss / 1e6 if self.process else None


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
            watched = psutil.Process(process.pid)
            yield Server(target, watched, seconds, watched.memory_info().rss / 1e6)
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
