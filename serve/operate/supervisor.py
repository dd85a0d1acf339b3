"""The parent of several server processes on one port (`rill serve --engines N`).

Each process (`rill.serve.operate.worker`) is a complete server. They share the port by SO_REUSEPORT: Linux distributes
connections among the processes that listen. The parent serves nothing. It holds the port and the keys of resume tokens,
forwards signals, and replaces a process that dies, while its clients continue at the others. If the parent dies, the
processes drain and end.
"""

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from rill.serve.config import ServerConfig
from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.metrics import forget, shared_page
from rill.serve.operate.ports import reserved
from rill.serve.operate.server import listen_for_signals, load_keys, log, log_token_lifetime

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is replaced: doubled each time it does not start
LAST_SECONDS = 5.0  # to end, beyond the drain; then processes are killed

Result = TypeVar("Result")


async def serve_together(config: ServerConfig) -> int:
    """Serve with `config.engines` processes until a signal, as `serve` does; returns the exit status.

    Raises StartError or BrokenEngineError if one of them does not start, and BrokenEngineError if later none is left.
    """
    keys = load_keys(config)
    with reserved(config) as port, shared_page(config.metrics_host, config.metrics_port) as environment:
        numbers = range(1, config.engines + 1)
        workers = [Worker(number, replace(config, port=port), keys, environment) for number in numbers]
        stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
        listen_for_signals(stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, workers)
        stopped = asyncio.create_task(stop.get())
        try:
            lines = await _unless(stopped, *(worker.start() for worker in workers))
            if lines is None:
                return 128 + stopped.result()  # as shells do; no client is served yet
            print(lines[0], end="", flush=True)
            log_token_lifetime(config)
            await _unless(stopped, *(_keep_alive(worker, workers) for worker in workers))
            return await _drain(workers, stop, config.drain_seconds)
        finally:
            await asyncio.gather(*(worker.kill() for worker in workers))


class Worker:
    """One process; `serving` tells whether it listens. When it has ended, it can be started again.

    `environment` is added to the parent's.
    """

    def __init__(
        self, number: int, config: ServerConfig, keys: Sequence[bytes], environment: Mapping[str, str]
    ) -> None:
        self.number, self.serving, self._environment = number, False, environment
        self._input = pickle.dumps((number, config, keys))
        self._process: asyncio.subprocess.Process | None = None
        self._reload_later = False

    async def start(self) -> str:
        """Start it; returns its "listening" line.

        Raises StartError with the error it reports instead, and BrokenEngineError if it ends without one.
        """
        # The process inherits the mask. Nothing else runs between here and its start.
        ours = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(f"-W{option}" for option in sys.warnoptions),
                "-P",
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
        process.stdin.write(self._input)
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
        """Make it read the bundles again, as soon as it serves."""
        self._reload_later = not self.serving
        if self.serving and self._process:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Tell it to drain, or the second time to end at once."""
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
        """Kill it, if it has not ended."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self.ended()


def _reload(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.reload()


async def _unless(stopped: asyncio.Task[Any], *coroutines: Coroutine[Any, Any, Result]) -> list[Result] | None:
    """Return their results; or cancel them and return None once `stopped` is done. Raises what one of them raises."""
    together = asyncio.gather(*coroutines)
    await asyncio.wait([stopped, together], return_when=asyncio.FIRST_COMPLETED)
    if not stopped.done():
        return await together
    together.cancel()
    with suppress(asyncio.CancelledError):
        await together
    return None


async def _keep_alive(worker: Worker, workers: Sequence[Worker]) -> NoReturn:
    """Restart `worker` whenever it has ended. Raises BrokenEngineError if that fails while no other serves."""
    while True:
        log.error("engine %d ended with status %d; restarting it", worker.number, await worker.ended())
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


async def _drain(workers: Sequence[Worker], stop: asyncio.Queue[signal.Signals], seconds: float) -> int:
    """Drain the processes that serve, or end them at once at a second signal; returns the exit status."""
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
        log.error("an engine does not end; killing it")
        return 1
    again.cancel()
    return int(any(statuses))
