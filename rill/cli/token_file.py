"""Resume tokens in files."""

import argparse
import os
from pathlib import Path


def read_token(path: str) -> bytes:
    """What is in a file. Raises ArgumentTypeError, with a sentence for the user."""
    try:
        token = Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
    if not token:
        raise argparse.ArgumentTypeError(f"{path} is empty")
    return token


def write_token(path: Path, token: bytes) -> None:
    """Written aside and renamed: the file is never half a token. Raises OSError."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(token)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
