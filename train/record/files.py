"""Files that are either the old one or the new one, never half of one."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Make `path` hold `data`: written aside in the same folder, synced to disk, then renamed over `path`.

    What `path` held before is renamed to `previous` if that is given.
    Raises OSError, for example when the disk is full; `path` is then as it was and the aside file is removed.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file by itself


def append_file(path: Path, data: bytes) -> None:
    """Add `data` at the end of `path`. Raises OSError; part of `data` may then be there."""
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def truncate_file(path: Path, size: int) -> None:
    """Cut `path` back to its first `size` bytes; a missing or shorter file is left alone."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
