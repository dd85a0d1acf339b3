"""Signals to the process, delivered on the event loop.

asyncio's own handlers end with the loop: for a moment before the process ends, SIGHUP and SIGTERM would change its exit
status. Those here are in force until the process has ended.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rill.logs import finish_logging

Handlers = Mapping[signal.Signals, Callable[[], None]]


@contextmanager
def delivered(handlers: Handlers) -> Iterator[None]:
    """Call the handler of each signal on the running event loop; afterwards ignore these signals."""
    loop = asyncio.get_running_loop()
    reading, writing = socket.socketpair()
    with reading, writing:
        for end in (reading, writing):
            end.setblocking(False)

        def receive() -> None:
            for number in reading.recv(64):
                if handler := handlers.get(signal.Signals(number)):
                    handler()

        loop.add_reader(reading, receive)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)  # receives the numbers
        for number in handlers:
            signal.signal(number, lambda number, frame: None)
        try:
            yield
        finally:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(before)
            loop.remove_reader(reading)


def end_at_once(status: int) -> None:
    """End the process with its last log lines, whatever its threads are doing."""
    finish_logging()
    os._exit(status)
