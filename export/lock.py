"""A lock between exporters of one bundle, held while its folder is inspected and replaced. Standard library only."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process holds `folder`, which need not exist, and hold it. Raises OSError.

    The lock is the file `.NAME.lock` beside the folder; it exists while the lock is held. The kernel frees the lock
    however its holder ends; the file of a killed holder stays until the next one.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # no lock there: exports of one bundle must not overlap
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is ours
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Lock the file at `path`; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous holder has removed this file: `path` is now another one
