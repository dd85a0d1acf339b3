"""Settings that make PyTorch train faster on a CPU."""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIAL_STEPS = 4  # the first is not timed, because threads have to wake up
TRIAL_EVERY = 150  # steps

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def prepare_cpu(threads: int) -> None:
    """Use `threads` threads (0: PyTorch's choice), and avoid page faults."""
    if threads:
        torch.set_num_threads(threads)
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
    """Switches between one thread and all, whichever is faster at the moment; tries both every TRIAL_EVERY steps.

    Threads wait for one another many times per step, so another busy program can make two threads several times slower
    than one. The number of threads changes rounding, so this is only for runs that are not bit-exact.
    """

    def __init__(self) -> None:
        self._candidates = sorted({1, torch.get_num_threads()})
        self._seconds: dict[int, list[float]] = {}
        self._step = 0
        torch.set_num_threads(1)  # never much too slow, so the evaluations before and between trials use it

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wrap one training step: in a trial, choose its threads, time it, and return to the fastest known number."""
        trial, within = divmod(self._step % TRIAL_EVERY, TRIAL_STEPS)
        self._step += 1
        if len(self._candidates) == 1 or trial >= len(self._candidates):
            yield
            return
        threads = self._candidates[trial]
        torch.set_num_threads(threads)
        started = time.perf_counter()
        yield
        seconds = self._seconds.setdefault(threads, [])
        if within == 1:
            seconds.clear()
        if within:
            seconds.append(time.perf_counter() - started)
        torch.set_num_threads(self._fastest())

    def _fastest(self) -> int:
        known = {threads: min(seconds) for threads, seconds in self._seconds.items() if seconds}
        return min(known, key=known.__getitem__, default=1)
