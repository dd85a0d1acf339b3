"""Holding a run folder: one process trains a run at a time."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rill.train.errors import RunError
from rill.train.record.folder import LOCK
from rill.train.record.lock import NO_LOCKS, acquire, is_at, is_locked, release


@dataclass(frozen=True)
class Hold:
    """A run folder that this process holds, or need not hold; `notice` says why others may yet train it, if so."""

    folder: Path
    notice: str = ""
    descriptor: int | None = None

    def check(self) -> None:
        """Raise RunError if the folder was removed or replaced, so that what is there now may be another run's."""
        if self.descriptor is not None and not is_at(self.folder / LOCK, self.descriptor):
            raise RunError(f"{self.folder} was removed or replaced while it was being trained; this process ends")


@contextmanager
def hold(folder: Path) -> Iterator[Hold]:
    """Hold the run folder, which is made if it is missing, and removed at the end if nothing has been put into it.

    Raises RunError if another process holds it, and OSError.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / LOCK
    try:
        try:
            descriptor = _acquire(lock)
        except OSError as error:
            refuse_if_held(folder)  # by another user, whose lock cannot be written
            if error.errno not in NO_LOCKS:
                raise
            lock.unlink(missing_ok=True)
            yield Hold(folder, f"{folder} is on a file system without locks; make sure that no other process trains it")
            return
        if descriptor is None:
            raise RunError(_held(folder))
        try:
            yield Hold(folder, _enter(descriptor), descriptor)
        finally:
            release(lock, descriptor)
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def refuse_if_held(folder: Path) -> None:
    """Raise RunError if another process holds the run folder."""
    if is_locked(folder / LOCK):
        raise RunError(_held(folder))


def _acquire(lock: Path) -> int | None:
    for _ in range(3):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            return acquire(lock, wait=False)
        except FileNotFoundError:  # another process has just removed the folder, because its run did not begin
            continue
    return None


def _enter(descriptor: int) -> str:
    """Write who holds the lock; returns a notice if a holder on another machine has not removed its own entry."""
    before = os.read(descriptor, 1000).decode(errors="replace")
    host = platform.node() or "localhost"
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} {host} {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
    holder = _holder(before)
    if holder is None or before.split()[1] == host:
        return ""
    return f"{holder}, trained this run and did not end properly; make sure that it no longer runs"


def _holder(entry: str) -> str | None:
    words = entry.split(maxsplit=2)
    return f"process {words[0]} on {words[1]}, since {words[2]}" if len(words) == 3 else None


def _held(folder: Path) -> str:
    """The error of a folder that another process holds."""
    try:
        holder = _holder((folder / LOCK).read_text(errors="replace"))
    except OSError:
        holder = None
    holder = holder or "another process"  # which has just begun, or just ended
    return f"{folder} is being trained by {holder}; wait for its end, stop it, or choose another --out"
