"""Several server processes on one port (`python -m serve --engines N`), and their parent, which is in this module.

Each process (`serve.worker`) is a whole server. They share the port by SO_REUSEPORT: Linux deals connections out among
those that listen. The parent serves nothing. It keeps the port and the keys of resume tokens, passes signals on, and
replaces a process that dies, while its clients go on at the others. If the parent dies, the processes drain and end.
"""

import asyncio
import errno
import pickle
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from serve.errors import StartError
from serve.server import Settings, keys_of, log, port_error, stop_signals, warn_of_short_lived_tokens

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is replaced: doubled each time it does not start
LAST_SECONDS = 5.0  # for the end, beyond the drain; then processes are killed
PARENTS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # signals that the processes have blocked when they start


async def serve_together(settings: Settings) -> int:
    """Serve by `settings.engines` processes until a signal, as `serve` does; returns the exit status.

    Raises StartError if one of them does not start, or later none of them any more.
    """
    keys = keys_of(settings)
    with reserved(settings.host, settings.port) as port:
        numbers = range(1, settings.engines + 1)
        workers = [Worker(number, replace(settings, port=port), keys) for number in numbers]
        try:
            lines = await asyncio.gather(*(worker.start() for worker in workers))
            stop = stop_signals()  # not before: while they load, Ctrl-C ends at once
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, workers)
            print(lines[0], end="", flush=True)
            warn_of_short_lived_tokens(settings)
            await _serving(workers, stop)
            return await _drained(workers, stop, settings.drain_seconds)
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


class Worker:
    """One process; `serving` is whether it listens. Another can be started in its place when it has ended."""

    def __init__(self, number: int, settings: Settings, keys: Sequence[bytes]) -> None:
        self.number, self.serving = number, False
        self._told = pickle.dumps((number, settings, keys))
        self._process: asyncio.subprocess.Process | None = None
        self._reload_later = False

    async def start(self) -> str:
        """Start it; returns its "listening" line. Raises StartError with what it says instead."""
        # The process inherits the blocked signals. Nothing else runs between here and its start.
        signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(f"-W{option}" for option in sys.warnoptions),
                "-m",
                "serve.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS)
        assert process.stdin
        assert process.stdout
        self._reload_later = False
        process.stdin.write(self._told)
        line = (await process.stdout.readline()).decode()
        if not line.startswith("rill: listening"):
            status = await process.wait()
            said = line.removeprefix("error: ").strip()
            raise StartError(said or f"engine {self.number} ended with status {status} while it was starting")
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
        return status

    async def kill(self) -> None:
        """End it whatever it is doing, if it has not ended."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self.ended()


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Keep a port that only processes of this user can have which are willing to share it; 0 takes a free one.

    Raises StartError if the port is in use.
    """
    with ExitStack() as stack:
        held = 0
        try:
            for family, kind, _, _, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
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
        except OSError:
            raise port_error(host, port) from None
        if not held:
            raise port_error(host, port)
        yield port


def _reload(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.reload()


async def _serving(workers: Sequence[Worker], stop: asyncio.Queue[signal.Signals]) -> None:
    """Replace those who die until a signal comes. Raises StartError if nobody is left and one cannot be started."""
    told = asyncio.create_task(stop.get())
    keeping = asyncio.gather(*(_keep(worker, workers) for worker in workers))
    await _first_of(told, keeping)
    if not told.done():
        told.cancel()
        await keeping
    keeping.cancel()


async def _keep(worker: Worker, workers: Sequence[Worker]) -> None:
    """Start `worker` again whenever it has ended. Raises StartError if that fails while no other serves."""
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
                    raise StartError(f"{error}; no engine is left") from None
                log.error("engine %d does not start: %s", worker.number, error)


async def _drained(workers: Sequence[Worker], stop: asyncio.Queue[signal.Signals], seconds: float) -> int:
    """Drain those that serve, and end at once at a second signal; returns the exit status."""
    serving = [worker for worker in workers if worker.serving]
    for worker in serving:
        worker.stop()
    ended = asyncio.gather(*(worker.ended() for worker in serving))
    again = asyncio.create_task(stop.get())
    await _first_of(ended, again, seconds=seconds + LAST_SECONDS)
    if again.done():
        for worker in serving:
            worker.stop()
        await _first_of(ended, seconds=LAST_SECONDS)
    again.cancel()
    if not ended.done():
        log.error("an engine does not end; it is killed")
        return 1
    return int(any(ended.result()))


async def _first_of(*futures: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Wait until one of them is done, for so long at most."""
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
