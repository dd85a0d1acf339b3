"""Files that are either the old one or the new one, never half of one."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`: written aside in the same folder, synced to disk, then renamed over `path`.

    Raises OSError, for example when the disk is full; `path` is then as it was and the aside file is removed.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file by itself


def truncate_file(path: Path, size: int) -> None:
    """Cut `path` back to its first `size` bytes; a missing or shorter file is left alone."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
