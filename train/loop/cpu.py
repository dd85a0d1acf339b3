"""Settings that make PyTorch train faster on a CPU."""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from rill.train.loop.cores import available_cores

TIMED_STEPS = 3  # of a trial; one more, before them, is not timed, because threads have to wake up
TRIAL_SECONDS = 1.0  # a trial of slow steps ends earlier
TRIAL_EVERY = 5.0  # seconds
STEPS_BETWEEN = 20  # trials, where steps are slow
CHANGED = 1.5  # times slower or faster than in the last trial: the load of the machine has changed
CHANGE_AFTER = 2.0  # seconds; before that, a change does not lead to a new trial
WORTH = 0.95  # another number of threads has to be at least this much faster
HOPELESS = 3.0  # times slower, in its first step
TRIALS_SHARE = 0.05  # of the time is spent with numbers of threads that turn out slower

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def prepare_cpu(threads: int) -> None:
    """Use `threads` threads (0: one for each core that this process has), and avoid page faults."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep the few megabytes of a step's tensors from one step to the next.

    By default it returns them to the system after each step and faults them in again, page by page: 10 % of a step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


class FasterThreads:
    """Follows the load of the machine: switches to the number of threads that trains fastest at the moment.

    Threads wait for one another many times per step, so another busy program can make two threads several times slower
    than one. Numbers are tried every few seconds, and as soon as steps have become much slower or faster. The number of
    threads changes rounding, so this is only for runs that are not bit-exact.
    """

    def __init__(
        self, cores: Callable[[], int] = available_cores, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cores, self._clock, self._most = cores, clock, torch.get_num_threads()
        self._fastest = 1  # never much too slow
        torch.set_num_threads(self._fastest)
        self._numbers = self._choose()
        self._next = next(self._numbers)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wrap one training step: choose its threads, time it, and return to the fastest known number."""
        torch.set_num_threads(self._next)
        started = self._clock()
        yield
        self._next = self._numbers.send(self._clock() - started)
        torch.set_num_threads(self._fastest)  # for evaluations

    def _choose(self) -> Generator[int, float, None]:
        """Yield the number of threads for each step; receive the seconds that the step took."""
        while True:
            most = min(self._most, self._cores())
            self._fastest = min(self._fastest, most)
            before, lost = self._fastest, 0.0
            usual = yield from self._time(self._fastest, float("inf"))
            for another in (_next_larger, _next_smaller):
                while other := another(self._fastest, most):
                    began = self._clock()
                    seconds = yield from self._time(other, usual)
                    if seconds > usual * WORTH:
                        lost += self._clock() - began
                        break
                    self._fastest, usual = other, seconds
                if self._fastest != before:
                    break
            yield from self._keep(usual, lost)

    def _time(self, threads: int, usual: float) -> Generator[int, float, float]:
        """Take a few steps with `threads` threads; return the median of their seconds."""
        began = self._clock()
        seconds = [(yield threads)]
        if seconds[0] > HOPELESS * usual:
            return seconds[0]
        while len(seconds) <= TIMED_STEPS and self._clock() - began < TRIAL_SECONDS:
            seconds.append((yield threads))
        return median(seconds[1:] or seconds)

    def _keep(self, usual: float, lost: float) -> Generator[int, float, None]:
        """Take steps with the fastest number of threads until it is time for the next trial."""
        began = self._clock()
        recent: deque[float] = deque(maxlen=TIMED_STEPS)
        enough = max(TRIAL_EVERY, STEPS_BETWEEN * usual, lost / TRIALS_SHARE)
        while (since := self._clock() - began) < enough:
            recent.append((yield self._fastest))
            settled = since > max(CHANGE_AFTER, lost) and len(recent) == TIMED_STEPS
            if settled and not usual / CHANGED < median(recent) < usual * CHANGED:
                return


def _next_larger(threads: int, most: int) -> int:
    """Twice as many threads, but at most `most`; 0 if there are no more."""
    return min(2 * threads, most) if threads < most else 0


def _next_smaller(threads: int, most: int) -> int:
    """The next smaller power of two; 0 below 1."""
    return 1 << ((threads - 1).bit_length() - 1) if threads > 1 else 0
