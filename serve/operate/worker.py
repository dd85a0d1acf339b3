"""One of several server processes on a port, which its parent (`supervisor`) starts.

stdin     from the parent: the configuration, pickled; later a byte for each stop signal. It ends with the parent.
stdout    to the parent: the "listening" line, or the error; then a line of figures about once a second, for its page

SIGHUP works as for any server. SIGTERM and SIGINT are blocked: a terminal or an init system may send them to the parent
and to all processes at once, and a process would mistake the one that the parent forwards for a second signal.
"""

import asyncio
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

from rill.streams import captured_stderr

FIGURES_SECONDS = 1.0  # between two lines of figures, at least
FIGURES_SHARE = 0.01  # of a core, at most


def main() -> int:
    """Serve until the parent says stop; returns the exit status: 2 if the server could not start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can handle it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        number, config, keys, private = pickle.load(sys.stdin.buffer)
        messages: list[str] = []
        # Only now, so that the parent learns why it fails, in an environment that has been broken meanwhile.
        with captured_stderr(messages) if config.log_format == "json" else nullcontext():
            from rill.logs import finish_logging, start_logging, stderr  # noqa: PLC0415
            from rill.serve.errors import BrokenEngineError, StartError  # noqa: PLC0415
            from rill.serve.observe.metrics import DROPPED_LINES  # noqa: PLC0415
            from rill.serve.observe.page import Readiness  # noqa: PLC0415
            from rill.serve.operate.server import Parent, log, serve  # noqa: PLC0415
    except EOFError:  # the parent has ended
        return 1
    except Exception as error:
        print(f"error: it cannot be loaded: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        return 2
    start_logging(config.log_format, config.access_log, stderr(), {"engine": number}, DROPPED_LINES.inc)
    for message in messages:
        log.warning("%s", message)

    def announce(line: str) -> None:
        print(line, flush=True)
        if config.metrics_port is not None:
            tasks.append(asyncio.get_running_loop().create_task(_send_figures()))

    tasks: list[asyncio.Task[None]] = []
    try:
        asyncio.run(serve(config, Readiness(), Parent(keys, private, _listen, announce)))
    except StartError as error:
        print(f"error: {error}", flush=True)
        return 2
    except BrokenEngineError as error:
        finish_logging(str(error))
        return 1
    except BrokenPipeError:  # the parent has ended
        return 1
    return 0


def _listen(stop: Callable[[], None]) -> None:
    """Call `stop` for each byte from the parent, and once if it ends without sending any."""
    loop, stdin, is_stopping = asyncio.get_running_loop(), sys.stdin.fileno(), False

    def read() -> None:
        nonlocal is_stopping
        byte = os.read(stdin, 1)
        if byte or not is_stopping:
            stop()
            is_stopping = True
        if not byte:
            loop.remove_reader(stdin)

    loop.add_reader(stdin, read)


async def _send_figures() -> None:
    """Send the figures of this process to the parent, in a thread, as a page of metrics is written."""
    from rill.serve.observe.engine_figures import own_figures  # noqa: PLC0415  # see `main`

    def send() -> float:
        started = time.thread_time()
        sys.stdout.write(own_figures())
        sys.stdout.flush()
        return time.thread_time() - started

    with suppress(BrokenPipeError):  # the parent has ended
        while True:
            seconds = await asyncio.to_thread(send)
            await asyncio.sleep(max(FIGURES_SECONDS, seconds / FIGURES_SHARE))


if __name__ == "__main__":
    sys.exit(main())
