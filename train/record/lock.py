"""Locks between processes: files that the kernel unlocks however their holder ends. Standard library only."""

import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems, usually network ones, that have none
TRIES, PAUSE = 5, 0.05  # `is_locked` holds a lock for a moment, which is not a reason to give up
FAR = 2**30  # Windows locks bytes, and nobody else can read those; a file of a lock is shorter


def acquire(path: Path, wait: bool) -> int | None:
    """Lock the file at `path`, which is made if it is missing; returns its descriptor, for `release`.

    Returns None if another process holds it and `wait` is false. Raises OSError, with an errno of `NO_LOCKS` where the
    file system has no locks.
    """
    tries = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _lock(descriptor, wait)
            if locked and is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # not ours, or the previous holder has removed this file: `path` is now another one
        if not locked and not wait:
            tries += 1
            if tries == TRIES:
                return None
        if not locked:
            time.sleep(PAUSE)


def release(path: Path, descriptor: int) -> None:
    """Remove the file at `path`, and unlock it."""
    ours = is_at(path, descriptor)
    if sys.platform == "win32":  # which removes no open file
        os.close(descriptor)
        with suppress(OSError):  # another process has opened it
            path.unlink(missing_ok=True)
        return
    if ours:
        path.unlink(missing_ok=True)
    os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at `path`, which others may have removed or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_locked(path: Path) -> bool:
    """Whether a process holds the file at `path`; false where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, wait=False, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int, wait: bool, shared: bool = False) -> bool:
        """Lock a byte of the open file; whether that succeeded."""
        os.lseek(descriptor, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

else:

    def _lock(descriptor: int, wait: bool, shared: bool = False) -> bool:
        """Lock the open file; whether that succeeded."""
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
