"""Several server processes on one port (`python -m rill.serve --engines N`), and their parent, which is in this module.

Each process (`rill.serve.operate.worker`) is a whole server. They share the port by SO_REUSEPORT: Linux deals
connections out among those that listen. The parent serves nothing. It keeps the port and the keys of resume tokens,
passes signals on, and replaces a process that dies, while its clients go on at the others. If the parent dies, the
processes drain and end.
"""

import asyncio
import errno
import os
import pickle
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.metrics import forget, shared_page
from rill.serve.operate.server import Settings, keys_of, listen_for_signals, log, port_error, say_how_long_tokens_last

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is replaced: doubled each time it does not start
LAST_SECONDS = 5.0  # for the end, beyond the drain; then processes are killed

Result = TypeVar("Result")


async def serve_together(settings: Settings) -> int:
    """Serve by `settings.engines` processes until a signal, as `serve` does; returns the exit status.

    Raises StartError or BrokenEngineError if one of them does not start, and BrokenEngineError if later none is left.
    """
    keys = keys_of(settings)
    with reserved(settings) as port, shared_page(settings.metrics_host, settings.metrics_port) as environment:
        numbers = range(1, settings.engines + 1)
        workers = [Worker(number, replace(settings, port=port), keys, environment) for number in numbers]
        stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
        listen_for_signals(stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, workers)
        told = asyncio.create_task(stop.get())
        try:
            lines = await _unless(told, *(worker.start() for worker in workers))
            if lines is None:
                return 128 + told.result()  # as shells have it; nobody is served yet
            print(lines[0], end="", flush=True)
            say_how_long_tokens_last(settings)
            await _unless(told, *(_keep(worker, workers) for worker in workers))
            return await _drained(workers, stop, settings.drain_seconds)
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


class Worker:
    """One process; `serving` is whether it listens. Another can be started in its place when it has ended.

    `environment` is what it has in addition to the parent's.
    """

    def __init__(self, number: int, settings: Settings, keys: Sequence[bytes], environment: Mapping[str, str]) -> None:
        self.number, self.serving, self._environment = number, False, environment
        self._given = pickle.dumps((number, settings, keys))
        self._process: asyncio.subprocess.Process | None = None
        self._reload_later = False

    async def start(self) -> str:
        """Start it; returns its "listening" line.

        Raises StartError with what it says instead, and BrokenEngineError if it ends without a word.
        """
        # The process inherits what is blocked. Nothing else runs between here and its start.
        ours = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(f"-W{option}" for option in sys.warnoptions),
                "-m",
                "rill.serve.operate.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, **self._environment},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        assert process.stdin
        assert process.stdout
        self._reload_later = False
        process.stdin.write(self._given)
        line = (await process.stdout.readline()).decode()
        if not line.startswith("rill: listening"):
            status = await process.wait()
            if line:
                raise StartError(line.removeprefix("error: ").strip())
            raise BrokenEngineError(f"engine {self.number} ended with status {status} while it was starting")
        self.serving = True
        log.info("engine %d is process %d", self.number, process.pid)
        if self._reload_later:
            self.reload()
        return line

    def reload(self) -> None:
        """Let it read the bundles again, as soon as it serves."""
        self._reload_later = not self.serving
        if self.serving and self._process:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Tell it to drain, or for the second time to end at once."""
        if self._process and self._process.stdin:
            self._process.stdin.write(b"s")

    async def ended(self) -> int:
        """Wait for its end; returns its exit status."""
        assert self._process
        status = await self._process.wait()
        self.serving = False
        forget(self._process.pid, self._environment)
        return status

    async def kill(self) -> None:
        """End it whatever it is doing, if it has not ended."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self.ended()


@contextmanager
def reserved(settings: Settings) -> Iterator[int]:
    """Keep the port, which only processes of this user can have that are willing to share it; 0 takes a free one.

    Raises StartError if it is in use.
    """
    host, port = settings.host.strip("[]"), settings.port
    with ExitStack() as stack:
        held = 0
        try:
            for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                keeper = stack.enter_context(socket.socket(family, kind))
                # Connections of a server that has ended are no hindrance.
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    keeper.bind((address[0], port, *address[2:]))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:  # a name may have addresses that are not used here
                        raise
                    continue
                # After the bind, which fails if anybody has the port: even one who would share it.
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held += 1
                port = keeper.getsockname()[1]
        except (OSError, UnicodeError):  # the latter of a name that cannot be one
            raise port_error(settings) from None
        if not held:
            raise port_error(settings)
        yield port


def _reload(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.reload()


async def _unless(told: asyncio.Task[Any], *coroutines: Coroutine[Any, Any, Result]) -> list[Result] | None:
    """What they return; or None if a signal is `told` before, which ends them. Raises what one of them raises."""
    together = asyncio.gather(*coroutines)
    await asyncio.wait([told, together], return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        return await together
    together.cancel()
    with suppress(asyncio.CancelledError):
        await together
    return None


async def _keep(worker: Worker, workers: Sequence[Worker]) -> NoReturn:
    """Start `worker` again whenever it has ended. Raises BrokenEngineError if it cannot while no other serves."""
    while True:
        log.error("engine %d ended with status %d; it is started again", worker.number, await worker.ended())
        pause = FIRST_PAUSE
        while not worker.serving:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                await worker.start()
            except StartError as error:
                if not any(other.serving for other in workers):
                    raise BrokenEngineError(f"no engine is left: {error}") from None
                log.error("engine %d does not start: %s", worker.number, error)
            except BrokenEngineError as error:
                log.error("%s", error)


async def _drained(workers: Sequence[Worker], stop: asyncio.Queue[signal.Signals], seconds: float) -> int:
    """Drain those that serve, and end at once at a second signal; returns the exit status."""
    serving = [worker for worker in workers if worker.serving]
    for worker in serving:
        worker.stop()
    again = asyncio.create_task(stop.get())
    try:
        async with asyncio.timeout(seconds + LAST_SECONDS):
            statuses = await _unless(again, *(worker.ended() for worker in serving))
        if statuses is None:
            for worker in serving:
                worker.stop()
            async with asyncio.timeout(LAST_SECONDS):
                statuses = await asyncio.gather(*(worker.ended() for worker in serving))
    except TimeoutError:
        log.error("an engine does not end; it is killed")
        return 1
    again.cancel()
    return int(any(statuses))
