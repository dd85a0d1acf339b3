"""Writing files so that a reader finds the old one or the new one, never half of one."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Replace `path` by a file of `data`: write it beside `path`, sync it to disk, and rename it.

    The old file is renamed to `previous` if that is given. Raises OSError, for example when the disk is full; `path` is
    then unchanged, and the new file is removed.
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
        raise OSError(
            error.errno, error.strerror, str(path)
        ) from error  # the error of a full disk does not name the file


def append_file(path: Path, data: bytes) -> None:
    """Append `data` to `path`. Raises OSError; part of `data` may then have been written."""
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def truncate_file(path: Path, size: int) -> None:
    """Truncate `path` to its first `size` bytes; a missing or shorter file is left unchanged."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
