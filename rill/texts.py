"""Texts of users, in files, on standard input and among arguments, as editors and shells everywhere write them."""

import argparse
import codecs
import os
from pathlib import Path

LARGEST = 256 * 2**20  # bytes: more than servers read, and a device such as /dev/zero has no end
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: str) -> str:
    """Return the text in a file, or of standard input if that is `-`; line ends become newlines.

    Raises ArgumentTypeError, with a sentence for the user.
    """
    name = "standard input" if path == "-" else path
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {name}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise argparse.ArgumentTypeError(f"{name} is larger than {LARGEST >> 20} MiB")
    try:
        return decoded(data)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name} {error}") from None


def decoded(data: bytes) -> str:
    """Return a text in UTF-8, or in UTF-16 with its mark; line ends become newlines. Raises ValueError."""
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from None
    if "\0" in text[:2]:
        raise ValueError("seems to be UTF-16 without a byte order mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(flag: str, path: str) -> list[str]:
    """Return the lines of a file that a flag names. Raises ValueError, with a sentence for the user."""
    try:
        return decoded(Path(path).read_bytes()).split("\n")
    except OSError as error:
        raise ValueError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{flag} {path} {error}") from None


def text_argument(argument: str) -> str:
    """Return an argument as UTF-8 has it, whatever the locale is. Raises ArgumentTypeError."""
    try:
        argument.encode()
    except UnicodeEncodeError:  # Python keeps bytes that the locale lacks as surrogates
        try:
            return os.fsencode(argument).decode()
        except UnicodeError:
            raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8") from None
    return argument
