"""The lines of a file, or of a pipe that never ends, as they come; memory does not grow with them."""

import codecs
import io
import select
from collections.abc import Iterator
from typing import NamedTuple

CHUNK = 65_536  # bytes that are read at a time, or as many as there are
LONGEST = 16_000_000  # characters of a line; as many as servers read at most, unless they are told otherwise
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Line(NamedTuple):
    """A line without its end. If it is not a text or too long to be kept, `fault` says so."""

    text: str
    fault: str = ""


def lines_of(path: str) -> Iterator[Line]:
    """Yield the lines of a file, or of standard input if `path` is "-", each as soon as its end has been read.

    The file is UTF-8, or UTF-16 with a byte order mark; \\n, \\r\\n and \\r end a line, as everywhere in Rill, and what
    follows the last of them is a line, too. In UTF-8, a byte that is not text is a fault of its line only; its place is
    shown as U+FFFD. Raises ValueError, with a sentence for the user, if nothing more can be read.
    """
    name = "standard input" if path == "-" else path
    try:
        with open(0 if path == "-" else path, "rb", buffering=0, closefd=path != "-") as file:
            assert isinstance(file, io.FileIO)
            yield from _lines(_chunks(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-16: {error.reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None


def _chunks(file: io.FileIO) -> Iterator[bytes]:
    """Yield what is there, as soon as there is something; at last nothing."""
    while True:
        chunk = file.read(CHUNK)
        if chunk is None:  # another program has made the pipe non-blocking
            select.select([file], [], [])
            continue
        yield chunk
        if not chunk:
            return


def _lines(chunks: Iterator[bytes]) -> Iterator[Line]:
    head = b""
    for chunk in chunks:
        head += chunk
        if not chunk or not any(mark.startswith(head) for mark in _MARKS):  # else the mark may be on its way
            break
    encoding = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), "utf-8")
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    line = _Growing()
    yield from line.take(decoder.decode(head))
    for chunk in chunks:
        yield from line.take(decoder.decode(chunk))
    yield from line.take(decoder.decode(b"", final=True))
    if line.length:
        yield line.end()


class _Growing:
    """The line whose end has not come yet."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self.length = 0

    def take(self, text: str) -> Iterator[Line]:
        """Add a text; yield the lines that are complete."""
        first, *others = text.split("\n")
        self._add(first)
        for part in others:
            yield self.end()
            self._add(part)

    def end(self) -> Line:
        """Return the line, and begin the next."""
        text, length = "".join(self._parts), self.length
        self._parts, self.length = [], 0
        if length > LONGEST:
            return Line("", f"has {length:,} characters; {LONGEST:,} are the most that is read of a line")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            byte = ord(text[error.start]) - 0xDC00
            return Line(
                text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                f"is not UTF-8: byte {byte:#04x} at position {error.start}",
            )
        return Line(text)

    def _add(self, part: str) -> None:
        self.length += len(part)
        if self.length > LONGEST:
            self._parts.clear()
        elif part:
            self._parts.append(part)
