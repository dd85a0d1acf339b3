"""One of several server processes on a port, which its parent (`supervisor`) starts.

stdin     from the parent: the configuration, pickled; later a byte for each stop signal. It ends with the parent.
stdout    to the parent: the "listening" line, or the error

SIGHUP works as for any server. SIGTERM and SIGINT are blocked: a terminal or an init system may send them to the parent
and to all processes at once, and a process would mistake the one that the parent forwards for a second signal.
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
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can handle it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        number, config, keys = pickle.load(sys.stdin.buffer)
    except EOFError:  # the parent has ended
        return 1
    start_logging(config.log_format, config.access_log, stderr(), {"engine": number})
    try:
        asyncio.run(serve(config, Parent(keys, _listen)))
    except StartError as error:
        print(f"error: {error}", flush=True)
        return 2
    except BrokenEngineError as error:
        log.error("%s", error)
        return 1
    except BrokenPipeError:  # the parent has ended
        return 1
    return 0


def _listen(stop: Stop) -> None:
    """Make `stop` receive a signal for each byte from the parent, and one if it ends without sending any."""
    loop, stdin, is_stopping = asyncio.get_running_loop(), sys.stdin.fileno(), False

    def read() -> None:
        nonlocal is_stopping
        byte = os.read(stdin, 1)
        if byte or not is_stopping:
            stop.put_nowait(signal.SIGTERM)
            is_stopping = True
        if not byte:
            loop.remove_reader(stdin)

    loop.add_reader(stdin, read)


if __name__ == "__main__":
    sys.exit(main())
