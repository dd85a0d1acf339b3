"""The server under test: one that is started here, as a process of its own, or one that is running."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import grpc
import grpc.aio
import psutil

from rill.bench import BenchError
from rill.bench.cores import on_core
from rill.cli.local_server import StartError, address_of
from rill.client.connection import options_for
from rill.client.errors import ServerError
from rill.processes import memory_file, python_command, python_environment
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

SERVE = tuple(python_command("rill.serve"))
START_SECONDS = 60.0  # at most, until a server listens
STOP_SECONDS = 15.0  # at most, from SIGTERM to its end; after that it is killed
ANSWER_SECONDS = 10.0  # at most, for a running server's list of models
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]  # by default, channels to one server share one
CONNECTIONS = 8  # for each process of a server that has several: Linux distributes them, not quite evenly


@dataclass(frozen=True)
class Spent:
    """CPU seconds so far: of the server, and of all programs but the server and this process."""

    server: float
    others: float

    def since(self, before: "Spent") -> "Spent":
        """Subtract what was spent earlier."""
        return Spent(self.server - before.server, max(self.others - before.others, 0.0))


@dataclass(frozen=True)
class Server:
    """`target` is HOST:PORT, `stub` makes an object with `Generate`; the rest is known only if it was started here.

    `processes` are the one that was started, and its children; times and memory are of all together.
    `start_seconds` is from the start of the process to its "listening" line; `rest_megabytes` is its resident memory
    right after that (a megabyte is 10^6 bytes).
    """

    target: str
    processes: tuple[psutil.Process, ...] = ()
    start_seconds: float | None = None
    rest_megabytes: float | None = None
    stub: Callable[[grpc.aio.Channel], Any] = TextGenerationStub
    connections: int = 1

    def spent(self) -> Spent | None:
        """Read the CPU times of this machine so far; `others` includes the host's share (steal)."""
        if not self.processes:
            return None
        times, machine = [process.cpu_times() for process in self.processes], psutil.cpu_times()
        server = sum(time.user + time.system for time in times)
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return Spent(server, busy - server - time.process_time())

    def peak_megabytes(self) -> float | None:
        """The largest resident memory so far, where the system reports it."""
        peaks = [_peak_megabytes(process.pid) for process in self.processes]
        return sum(peaks) if peaks and all(peaks) else None

    def megabytes(self) -> float | None:
        """Resident memory, in 10^6 bytes."""
        return sum(process.memory_info().rss for process in self.processes) / 1e6 if self.processes else None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """Connect; yields an object with `Generate`, over the `connections` in turn."""
        async with AsyncExitStack() as stack:
            options = [*OWN_CONNECTION, *options_for(self.target)]
            channels = [grpc.aio.insecure_channel(self.target, options) for _ in range(self.connections)]
            stubs = [self.stub(await stack.enter_async_context(channel)) for channel in channels]
            yield _InTurn(stubs) if self.connections > 1 else stubs[0]


class _InTurn:
    """Several stubs, used in turn."""

    def __init__(self, stubs: Sequence[Any]) -> None:
        self._stubs = cycle(stubs)

    def Generate(self, request: Any) -> Any:
        """Call the next stub."""
        return next(self._stubs).Generate(request)


def _peak_megabytes(pid: int) -> float:
    """Read the largest resident memory so far, in 10^6 bytes; 0 where the system does not report it."""
    status = Path(f"/proc/{pid}/status")
    lines = (line.split() for line in status.read_text().splitlines()) if status.exists() else iter(())
    return next((int(words[1]) * 1024 / 1e6 for words in lines if words and words[0] == "VmHWM:"), 0.0)


def rill(bundle: Path, *options: str) -> list[str]:
    """Return the command that serves `bundle` on a free port."""
    return [*SERVE, str(bundle), "--port", "0", *options]


def end_on_signals() -> None:
    """Let signals cancel this task, so that no server stays; so does a closed terminal, unless nohup was used."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:
            loop.add_signal_handler(number, task.cancel)


@asynccontextmanager
async def own_server(command: Sequence[str], core: int | None) -> AsyncIterator[Server]:
    """Start a server that prints where it listens, pinned to `core` if one is given; it ends with the context.

    Raises StartError.
    """
    with memory_file() as log:
        started = time.perf_counter()
        with on_core(core):
            process = await asyncio.create_subprocess_exec(
                *command,
                env=python_environment(),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # Linux shares the processors between sessions: in ours, the server would leave this process so little
                # of its own core that any other program on it delayed it by a tenth of a second.
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
    """Read HOST:PORT from the "listening" line. Raises StartError."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):  # `wait_for` may swallow Ctrl-C if the line arrives with it
            line = await process.stdout.readline()
    except TimeoutError:
        raise StartError(f"the server did not listen within {START_SECONDS:.0f} s") from None
    return address_of(line, log)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            # `terminate` would reap a process that has just ended, and `wait` would never return.
            os.kill(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def served_name(target: str, model_id: str) -> str:
    """Return the model's name at `target`. Raises BenchError if it is not served, or `target` cannot be reached."""
    async with grpc.aio.insecure_channel(target, options_for(target)) as channel:
        try:
            answer = await TextGenerationStub(channel).ListModels(pb.ListModelsRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = ServerError.from_rpc(error)
            where = "" if target in str(failure) else f"{target}: "
            raise BenchError(f"{where}{failure} ({failure.code.name})") from None
    for model in answer.models:
        if model.model_id == model_id:
            return str(model.name)
    names = ", ".join(model.name for model in answer.models)
    raise BenchError(f"{target} does not serve this bundle; give one that it does: {names or 'it has none'}")
