"""Keeping the server and the client on processor cores of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def two_cores() -> tuple[int, int] | None:
    """Choose one for the server and one for the client, physically separate if possible; None if there are not two."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    siblings = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/topology/thread_siblings_list")
    shared = siblings.read_text().strip() if siblings.exists() else ""
    apart = [core for core in cores[1:] if not _lists(shared, core)]
    return cores[0], (apart or cores[1:])[0]


def _lists(ranges: str, number: int) -> bool:
    """Tell whether a number is in a list such as "0,4-7"."""
    bounds = (part.partition("-") for part in ranges.split(",") if part)
    return any(int(first) <= number <= int(last or first) for first, _, last in bounds)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this thread, and processes that it starts, on one core inside the context; None changes nothing."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
