"""`rill serve`, which writes into the file RILL_TURNS, when it ends, which turns of its event loop took longest since
it listened.

Processor time, so that other programs on the machine do not count: what a turn takes is missing to all streams.
"""

import os
import sys
import time
from asyncio import Handle
from heapq import heappush, heapreplace
from pathlib import Path

KEPT = 10

longest: list[tuple[float, str]] = []
_run = Handle._run


def _timed(handle: Handle) -> None:
    started = time.thread_time()
    _run(handle)
    seconds = time.thread_time() - started
    if len(longest) < KEPT:
        heappush(longest, (seconds, repr(handle)))
    elif seconds > longest[0][0]:
        heapreplace(longest, (seconds, repr(handle)))


def _announce(text: str) -> None:
    _announced(text)
    Handle._run = _timed


if __name__ == "__main__":
    from rill.serve.command import main
    from rill.serve.operate import server

    _announced, server.announce = server.announce, _announce
    status = main(sys.argv[1:])
    lines = [f"{1000 * seconds:.1f} ms {what}" for seconds, what in sorted(longest, reverse=True)]
    Path(os.environ["RILL_TURNS"]).write_text("\n".join(lines))
    sys.exit(status)
