"""The standard streams of a command: one may be closed, full, without a reader, or unable to show a character."""

import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def prepare_streams() -> None:
    """Make the standard streams usable, whatever they are.

    A stream that the caller has closed (`rill … >&-`) becomes the null device: otherwise a socket would get its number.
    A character that an encoding lacks is written as an escape. What stderr does not take is lost, and ends nothing.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # as Python says that it is closed
            setattr(sys, name, _null_device(number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        raw = _Unfailing(sys.stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )


def run_with_streams(command: Callable[[], int]) -> int:
    """Run a command with usable standard streams; returns its exit status, or 1 if its output cannot be written.

    A reader of stdout that has had enough is not an error.
    """
    prepare_streams()
    try:
        try:
            return command()
        finally:  # also after argparse has printed --help; at exit, Python would report a failure in its own way
            sys.stdout.flush()
    except OSError as error:
        return end_output(error)


def end_output(error: OSError) -> int:
    """Return the exit status after `error` in writing; nothing more can be written to stdout."""
    discard_output()
    if isinstance(error, BrokenPipeError):  # the reader has had enough
        return 0
    print(f"error: cannot write{f' {error.filename}' * bool(error.filename)}: {error.strerror}", file=sys.stderr)
    return 1


@contextmanager
def captured_stderr(lines: list[str]) -> Iterator[None]:
    """Add to `lines` what is written to the descriptor of stderr, by C libraries too, instead of writing it.

    Only where the system has files in memory: Linux.
    """
    if not hasattr(os, "memfd_create"):
        yield
        return
    kept = os.dup(2)
    with os.fdopen(os.memfd_create("stderr"), "w+b") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def discard_output() -> None:
    """Write nothing more to stdout, not even what it has kept for the exit: it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _null_device(number: int) -> io.TextIOWrapper:
    descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the closed stream
    os.set_inheritable(descriptor, True)  # as standard streams are
    return os.fdopen(descriptor, "w" if number else "r", encoding="utf-8", closefd=False)


class _Unfailing(io.FileIO):
    """A file that loses what it cannot write; where the reader is slow, it waits."""

    def write(self, data: Any, /) -> int:
        """See FileIO."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # another program has made the terminal non-blocking
        except OSError:
            return len(data)
        return written
