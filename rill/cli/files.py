"""Resume tokens in files."""

import argparse
from pathlib import Path

from rill.files import STDOUT, output_file, replaced


def read_token(path: str) -> bytes:
    """Return the resume token in a file. Raises ArgumentTypeError, with a sentence for the user."""
    try:
        token = Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
    if not token:
        raise argparse.ArgumentTypeError(f"{path} is empty")
    return token


def token_file(text: str) -> Path:
    """Return the path of a file for a resume token. Raises ArgumentTypeError if it cannot be written."""
    path = output_file(text)
    if path == STDOUT:
        raise argparse.ArgumentTypeError(f"{text}: standard output has the text; name a file or a device for the token")
    return path


def write_token(path: Path, token: bytes) -> None:
    """Write a resume token into a file, which others cannot read if it is new. Raises OSError."""
    with replaced(path, 0o600) as file:
        file.write(token)
