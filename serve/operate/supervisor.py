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
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, TypeVar

from rill.processes import python_command, python_environment
from rill.serve.config import ServerConfig
from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.engine_figures import EngineFigures
from rill.serve.observe.page import DRAINING, Readiness, page
from rill.serve.operate import restarts
from rill.serve.operate.http_gateway import running
from rill.serve.operate.ports import require_http_free, reserved
from rill.serve.operate.private_listener import HOST, PrivateListener, make_identity
from rill.serve.operate.server import announce, load_keys, log, log_token_lifetime
from rill.signals import delivered

MOST_FAILURES = 6  # in a row of a process that does serve for a moment; then it does not count as one that serves
LAST_SECONDS = 5.0  # to end, beyond the drain; then processes are killed
LONGEST_LINE = 2**28  # bytes that a process may send at once: its figures

Result = TypeVar("Result")


async def serve_together(config: ServerConfig) -> int:
    """Serve with `config.engines` processes until a signal, as `serve` does; returns the exit status.

    Raises StartError if one of them does not start, and BrokenEngineError if later none is left.
    """
    keys, figures, readiness = load_keys(config), EngineFigures(), Readiness()
    workers: list[Worker] = []

    def obstacle() -> str:
        # While an engine is replaced, all connections go to the others.
        return readiness.obstacle or ("" if any(worker.serving for worker in workers) else "no engine is left")

    stop: asyncio.Queue[signal.Signals] = asyncio.Queue()
    with (
        reserved(config) as port,
        _private_listeners(config) as listeners,
        page(config.metrics_host, config.metrics_port, obstacle, figures),
    ):
        require_http_free(config)
        own = replace(config, port=port, http_port=None)
        workers += [Worker(number, own, keys, figures, private) for number, private in enumerate(listeners, 1)]
        handlers = {number: partial(stop.put_nowait, number) for number in (signal.SIGTERM, signal.SIGINT)}
        with delivered({**handlers, signal.SIGHUP: partial(_reload, workers)}):
            try:
                return await _serve(config, workers, stop, readiness)
            finally:
                await asyncio.gather(*(worker.kill() for worker in workers))


async def _serve(
    config: ServerConfig, workers: Sequence["Worker"], stop: asyncio.Queue[signal.Signals], readiness: Readiness
) -> int:
    """Start the processes and the gateway, and keep them alive until a signal; then drain."""
    stopped = asyncio.create_task(stop.get())
    private = [worker.private for worker in workers if worker.private]
    gateway = running(config, [listener.address for listener in private], private[0] if private else None)
    async with AsyncExitStack() as stack:
        lines = await _unless(stopped, *(worker.start() for worker in workers))
        gateways = await _unless(stopped, stack.enter_async_context(gateway)) if lines else None
        if not lines or not gateways:
            return 128 + stopped.result()  # as shells do; no client is served yet
        announce("\n".join(filter(None, [lines[0], gateways[0].line])))
        log_token_lifetime(config)
        readiness.obstacle = ""
        await _unless(stopped, *(_keep_alive(worker, workers) for worker in workers))
        readiness.obstacle = DRAINING
        gateways[0].expect_end()
        return await _drain(workers, stop, config.drain_seconds)


@contextmanager
def _private_listeners(config: ServerConfig) -> Iterator[list[PrivateListener | None]]:
    """Hold a port on loopback for each process: the gateway's streams are to be spread over all of them."""
    if config.http_port is None:
        yield [None] * config.engines
        return
    identity, anywhere = make_identity(), replace(config, host=HOST, port=0)
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved(anywhere)) for _ in range(config.engines)]
        yield [PrivateListener(identity, port) for port in ports]


class Worker:
    """One process; `serving` tells whether it listens. When it has ended, it can be started again.

    `failures` counts how often in a row it did not start, or ended soon after. `is_lost` tells that it cannot be
    counted on any more: the last start failed, or MOST_FAILURES did.
    """

    def __init__(
        self,
        number: int,
        config: ServerConfig,
        keys: Sequence[bytes],
        figures: EngineFigures,
        private: PrivateListener | None = None,
    ) -> None:
        self.number, self.serving, self.failures, self.is_lost = number, False, 0, False
        self.private = private
        self._input, self._figures = pickle.dumps((number, config, keys, private)), figures
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._listening_since = 0.0  # time.monotonic()
        self._reload_later = False

    async def start(self) -> str:
        """Start it; returns its "listening" line. Raises StartError with the error that it reports instead."""
        try:
            line = await self._start()
        except StartError:
            self.failures += 1
            self.is_lost = True
            raise
        self.serving, self.is_lost, self._listening_since = True, self.failures >= MOST_FAILURES, time.monotonic()
        if self._reload_later:
            self.reload()
        return line

    async def _start(self) -> str:
        # The process inherits the mask. Nothing else runs between here and its start.
        ours = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ours)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *python_command("rill.serve.operate.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=python_environment(),
                limit=LONGEST_LINE,
            )
        except OSError as error:
            raise StartError(f"engine {self.number} cannot be started: {error.strerror}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        assert process.stdin
        assert process.stdout
        self._reload_later = False
        process.stdin.write(self._input)
        line = (await process.stdout.readline()).decode()
        if not line.startswith("rill: listening"):
            status = await process.wait()
            reason = line.removeprefix("error: ").strip()
            raise StartError(reason or f"engine {self.number} ended with status {status} while it was starting")
        log.info("engine %d is process %d", self.number, process.pid)
        self._reading = asyncio.create_task(self._read_figures(process.stdout))
        return line.rstrip("\n")

    async def _read_figures(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            with suppress(ValueError):  # a library has printed it
                self._figures.update(self.number, line)

    def reload(self) -> None:
        """Make it read the bundles again, as soon as it serves."""
        self._reload_later = not self.serving
        if self.serving:
            self._send(signal.SIGHUP)

    def stop(self) -> None:
        """Tell it to drain, or the second time to end at once."""
        if self._process and self._process.stdin:
            self._process.stdin.write(b"s")

    async def ended(self) -> int:
        """Wait for its end; returns its exit status."""
        assert self._process
        status = await self._process.wait()
        if self.serving:
            is_early = time.monotonic() - self._listening_since < restarts.STEADY_SECONDS
            self.failures = self.failures + 1 if is_early else 0
            self.is_lost = self.failures >= MOST_FAILURES
            self.serving = False
            assert self._reading
            await self._reading  # the last figures
            self._figures.end(self.number)
        return status

    async def kill(self) -> None:
        """Kill it, if it has not ended."""
        if self._process and self._process.returncode is None:
            self._send(signal.SIGKILL)
            await self.ended()

    def _send(self, number: signal.Signals) -> None:
        # asyncio's own `send_signal` would reap a process that has just ended, and its status be lost.
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


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
    """Restart `worker` whenever it has ended. Raises BrokenEngineError once no process serves or can be expected to."""
    while True:
        reason = f"engine {worker.number} ended with status {await worker.ended()}"
        log.error("%s; restarting it", reason)
        while not worker.serving:
            if all(other.is_lost and not other.serving for other in workers):
                raise BrokenEngineError(f"no engine is left: {reason}")
            await asyncio.sleep(restarts.pause(worker.failures))
            try:
                await worker.start()
            except StartError as error:
                reason = str(error)
                log.error("engine %d does not start: %s", worker.number, reason)


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
