"""Files that commands write: whole or not at all; and resume tokens in files."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that replaces it at the end, unless there was an error. Raises OSError."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_token(path: str) -> bytes:
    """Return the resume token in a file. Raises ArgumentTypeError, with a sentence for the user."""
    try:
        token = Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
    if not token:
        raise argparse.ArgumentTypeError(f"{path} is empty")
    return token


def write_token(path: Path, token: bytes) -> None:
    """Write a resume token into a file. Raises OSError."""
    with replaced(path) as file:
        file.write(token)
