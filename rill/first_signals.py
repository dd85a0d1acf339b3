"""What signals do to a server while it is loaded. Imports next to nothing, to be in force as early as possible."""

import os
import signal


def take_signals() -> None:
    """Let SIGHUP end nothing, and SIGTERM and Ctrl-C end the process, until the program handles them itself.

    Loading it takes most of a second. As PID 1 of a container, a process without handlers would ignore SIGTERM.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    os._exit(128 + number)  # an exception could be caught by whatever is being imported
