"""One of several server processes on a port, which its parent (`supervisor`) starts.

stdin     from the parent: what to serve, pickled; later a byte each time it is to stop. Its end is the parent's end.
stdout    to the parent: the "listening" line, or why there is none

SIGHUP is as for any server. SIGTERM and SIGINT are blocked: a terminal or an init system may send them to the parent
and to all processes at once, and a process would take what the parent passes on for the second.
"""

import asyncio
import os
import pickle
import signal
import sys

from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.logs import start_logging, stderr
from rill.serve.operate.server import Parent, Stop, log, serve


def main() -> int:
    """Serve until the parent says stop; returns the exit status: 2 if the server could not start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can do as it says
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        number, settings, keys = pickle.load(sys.stdin.buffer)
    except EOFError:  # the parent is gone
        return 1
    start_logging(settings.log_format, settings.access_log, stderr(), {"engine": number})
    try:
        asyncio.run(serve(settings, Parent(keys, _listen)))
    except StartError as error:
        print(f"error: {error}", flush=True)
        return 2
    except BrokenEngineError as error:
        log.error("%s", error)
        return 1
    except BrokenPipeError:  # the parent is gone
        return 1
    return 0


def _listen(stop: Stop) -> None:
    """Let `stop` receive a signal each time the parent says so, and once if it ends without a word."""
    loop, stdin, told = asyncio.get_running_loop(), sys.stdin.fileno(), False

    def hear() -> None:
        nonlocal told
        word = os.read(stdin, 1)
        if word or not told:
            stop.put_nowait(signal.SIGTERM)
            told = True
        if not word:
            loop.remove_reader(stdin)

    loop.add_reader(stdin, hear)


if __name__ == "__main__":
    sys.exit(main())
