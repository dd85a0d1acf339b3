"""The process that compiles constraints, so that no pattern can hold up, fill or end the server.

stdin     jobs from the server (`jobs`); the process ends with it
stdout    a reply for each

Each job runs in a fork of its own, with a limit of processor time and memory. This process has one thread and has
loaded all that a job needs, so a fork begins at once, and one that is killed costs no other job anything.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

from rill.serve.constraints.build import build
from rill.serve.constraints.jobs import (
    LENGTH,
    Job,
    automaton_reply,
    error_reply,
    framed,
    is_whole,
    unfinished_reply,
    unpack_job,
)
from rill.serve.constraints.patterns import ConstraintError

MEMORY = 512 << 20  # bytes that a job may take
WALL = 30.0  # seconds that a job may take on a busy machine
_OUT_OF_MEMORY = 3  # exit status
_ENDED, _BUSY = "the server has ended", "the server is too busy to compile it; try again"
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do jobs until the server ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to all; the server decides
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with suppress(OSError):
        os.nice(2)  # what generates text goes first
    while (length := _received(LENGTH)) is not None:
        if not any(length):
            continue  # CANCEL, for a job that was done already
        packed = _received(int.from_bytes(length, "little"))
        reply = None if packed is None else _run(unpack_job(packed))
        if reply is None:
            break
        _send(1, reply)
    return 0


def _received(size: int) -> bytes | None:
    """Read so many bytes; None if the server has ended. Nothing is read ahead: `_read` waits for what is next."""
    parts = []
    while size:
        part = os.read(0, size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(file: int, message: bytes) -> None:
    rest = memoryview(message)
    while rest:
        rest = rest[os.write(file, rest) :]


def _run(job: Job) -> bytes | None:
    """Do a job in a fork; None if the server has ended."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        _work(job, writing)
    os.close(writing)
    reply, stopped = _read(reading, time.monotonic() + WALL)
    os.close(reading)
    whole = is_whole(reply)
    if not whole:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if whole:
        return reply
    if stopped == _ENDED:
        return None
    if stopped:
        return framed(unfinished_reply(stopped, known=False))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return framed(unfinished_reply(f"it takes more than {job.seconds:g} s to compile"))
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return framed(unfinished_reply(f"it takes more than {MEMORY >> 20} MB to compile"))
    return framed(unfinished_reply("it cannot be compiled"))


def _read(pipe: int, deadline: float) -> tuple[bytes, str]:
    """Read a reply to its end, and say what stopped it before."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(0, select.POLLIN)
    parts: list[bytes] = []
    while (seconds := deadline - time.monotonic()) > 0:
        ready = dict(poll.poll(seconds * 1000))
        if 0 in ready:  # the server sends no other job before it has the reply
            return b"".join(parts), _ENDED if _received(LENGTH) is None else "it was cancelled"
        if pipe in ready:
            part = os.read(pipe, 1 << 20)
            if not part:
                return b"".join(parts), ""
            parts.append(part)
    return b"".join(parts), _BUSY


def _work(job: Job, pipe: int) -> NoReturn:
    try:
        os.close(0)
        os.close(1)
        _set_limits(job.seconds)
        try:
            reply = automaton_reply(build(job))
        except ConstraintError as error:
            reply = error_reply(error)
        _send(pipe, framed(reply))
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except BaseException:  # a panic of the library, too
        os._exit(1)
    os._exit(0)


def _set_limits(seconds: float) -> None:
    """End this process after so much processor time, whatever it does, and with its parent."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError, ValueError, AttributeError):  # not Linux, or a lower limit is set already
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


if __name__ == "__main__":
    sys.exit(main())
