"""Settings that make PyTorch train faster on a CPU; results do not change."""

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def prepare_cpu(threads: int) -> None:
    """Use `threads` threads (0: PyTorch's choice), and spare the processor page faults."""
    if threads:
        torch.set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep the few megabytes of a step's tensors from one step to the next.

    It would give them back to the system after each step and fault them in again, page by page: 10 % of a step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 1 << 30)
