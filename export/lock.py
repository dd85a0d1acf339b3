"""A lock between exporters of one bundle, held while its folder is inspected and replaced. Standard library only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rill.train.record.lock import NO_LOCKS, acquire, release


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process holds `folder`, which need not exist, and hold it. Raises OSError.

    The lock is the file `.NAME.lock` beside the folder; it exists while the lock is held. The kernel frees the lock
    however its holder ends; the file of a killed holder stays until the next one.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    try:
        descriptor = acquire(path, wait=True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        descriptor = None  # exports of one bundle must not overlap there
    try:
        yield
    finally:
        if descriptor is None:
            path.unlink(missing_ok=True)
        else:
            release(path, descriptor)
