"""The process that compiles constraints, so that no pattern can hold up, fill or end the server.

stdin     jobs, pickled, from the server; the process ends with it
stdout    a reply for each (`jobs`)
Eight bytes with the length come before each.

Each job runs in a fork of its own, with a limit of processor time and memory. This process has one thread and has
loaded all that a job needs, so a fork takes a millisecond or two, and one that is killed costs no other job anything.
"""

import ctypes
import os
import pickle
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

from rill.serve.constraints.build import build
from rill.serve.constraints.jobs import Job, automaton_reply, error_reply, failure_reply
from rill.serve.constraints.patterns import ConstraintError

MEMORY = 512 << 20  # bytes that a job may take
WALL = 10.0  # seconds of a job for each second of processor time, on a busy machine
_LENGTH = 8  # bytes
_OUT_OF_MEMORY = 3  # exit status
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do jobs until the server ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to all; the server decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with suppress(OSError):
        os.nice(5)  # what generates text goes first
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(length := source.read(_LENGTH)) == _LENGTH:
        job: Job = pickle.loads(source.read(int.from_bytes(length, "little")))
        reply = _run(job)
        if reply is None:
            break
        target.write(reply)
        target.flush()
    return 0


def _run(job: Job) -> bytes | None:
    """Do a job in a fork; None if the server has ended."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        _work(job, writing)
    os.close(writing)
    with os.fdopen(reading, "rb", 0) as pipe:
        reply = _read(pipe.fileno(), time.monotonic() + WALL * job.seconds)
    if reply is None or not _is_whole(reply):
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if reply is None or _is_whole(reply):
        return reply
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
        return _framed(failure_reply(f"it takes more than {job.seconds:g} s to compile"))
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return _framed(failure_reply(f"it takes more than {MEMORY >> 20} MB to compile"))
    return _framed(failure_reply("it cannot be compiled"))


def _framed(reply: bytes) -> bytes:
    return len(reply).to_bytes(_LENGTH, "little") + reply


def _is_whole(reply: bytes) -> bool:
    return len(reply) == _LENGTH + int.from_bytes(reply[:_LENGTH], "little")


def _read(pipe: int, deadline: float) -> bytes | None:
    """Read to the end, or until the deadline; None if the server has ended."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(0, select.POLLIN)  # the server sends nothing meanwhile: this is its end
    parts = []
    while (seconds := deadline - time.monotonic()) > 0:
        ready = dict(poll.poll(seconds * 1000))
        if 0 in ready:
            return None
        if pipe in ready:
            part = os.read(pipe, 1 << 20)
            if not part:
                break
            parts.append(part)
    return b"".join(parts)


def _work(job: Job, pipe: int) -> NoReturn:
    try:
        os.close(0)
        os.close(1)
        _set_limits(job.seconds)
        try:
            reply = automaton_reply(build(job))
        except ConstraintError as error:
            reply = error_reply(error)
        with os.fdopen(pipe, "wb") as stream:
            stream.write(_framed(reply))
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
