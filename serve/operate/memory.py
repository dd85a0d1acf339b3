"""Settings of the process's memory: of Python's garbage collector and of the C library."""

import ctypes
import gc
from contextlib import suppress

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD, malloc.h of glibc
LARGE = 2**20  # bytes; blocks of a round are smaller, except those of large models, whose rounds take long anyway


def prepare_memory() -> None:
    """Exclude what has been imported from garbage collection, and return large blocks to the system when freed.

    The collector would stop all threads for 40 ms each time it scanned the imported modules. And glibc serves blocks
    from its heaps up to the size of the largest one freed so far, where models that come and go leave holes: a server
    of 120 MiB grew to 290 in 900 reloads. Other C libraries keep their defaults.
    """
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, LARGE)
