"""The bytes of a file as text: what it is packed in, its encoding, its line ends."""

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from rill.train.errors import CorpusError

UTF_8 = "utf-8"
MARKS = {  # the longer ones first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
GZIP = b"\x1f\x8b"
PIECE = 2**20  # bytes that are unpacked at a time
SAMPLE = 2**16  # bytes that an encoding is guessed from

# What begins with these bytes, and what to do with it.
_PIPE = "unpack it, or pipe the text: {} FILE | rill train --corpus - …"
_PACKED = {
    b"PK\x03\x04": (
        "a ZIP archive, as .docx, .odt and .epub files are, too",
        "save a document as plain text, or " + _PIPE.format("unzip -p"),
    ),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _PIPE.format("7z x -so")),
    b"Rar!\x1a\x07": ("a RAR archive", _PIPE.format("unrar p -inul")),
    b"BZh91AY&SY": ("compressed by bzip2", _PIPE.format("bzcat")),
    b"\xfd7zXZ\0": ("compressed by xz", _PIPE.format("xzcat")),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", _PIPE.format("zstdcat")),
    b"\x1f\x9d": ("compressed by compress", _PIPE.format("zcat")),
    b"%PDF-": ("a PDF document", "save it as plain text, for example with pdftotext"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Office document", "save it as plain text"),
    b"\x89PNG\r\n": ("a PNG image", "leave it out"),
    b"\xff\xd8\xff": ("a JPEG image", "leave it out"),
    b"GIF89a": ("a GIF image", "leave it out"),
    b"\x7fELF": ("a program", "leave it out"),
    b"SQLite format 3\0": ("a SQLite database", "export its text"),
    b"version https://git-lfs.github.com/spec/": ("a pointer of Git LFS, not the text itself", "run git lfs pull"),
}


def read_bytes(path: Path, limit: int) -> bytes:
    """Read the file, pipe or terminal `path`. Raises CorpusError, also for one of more than `limit` bytes."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) and path.stat().st_size > limit:
            raise _too_long(str(path), limit)
        with path.open("rb") as file:
            if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not os.isatty(file.fileno())):
                raise CorpusError(f"{path} is a device, not a text")
            data = file.read() if stat.S_ISREG(mode) else read_up_to(file, limit, str(path))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from None
    return data


def read_up_to(file: BinaryIO | gzip.GzipFile, limit: int, source: str) -> bytes:
    """Read all of `file`. Raises CorpusError for more than `limit` bytes."""
    data = bytearray()
    while piece := file.read(PIECE):
        data += piece
        if len(data) > limit:
            raise _too_long(source, limit)
    return bytes(data)


def memory_limit() -> int:
    """The most bytes of text that could be trained on: a quarter of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**63


def decode(data: bytes, source: str, encodings: Sequence[str] = (UTF_8,), limit: int | None = None) -> str:
    """Decode the text of a file: unpacked if it is gzip, without a byte order mark, and with every line end (CR LF, CR)
    as one newline.

    A byte order mark says which UTF it is. Without one, the first of the `encodings` in which `data` is valid is taken.
    Raises CorpusError, naming `source` and what to do, for anything else; also if it unpacks to more than `limit` bytes
    (default: what memory could hold).
    """
    if data.startswith(GZIP):
        data = _unpacked(data, source, memory_limit() if limit is None else limit)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    if mark:
        encodings = (MARKS[mark],)
    else:
        _refuse_packed(data, source)
    text = _decoded(data[len(mark) :], source, encodings, bool(mark))
    nul = text.find("\0")
    if nul >= 0:
        if not mark and (wide := _wide_encoding(data)):
            raise CorpusError(f"{source} looks like {_shown(wide)} without a byte order mark; give --encoding {wide}")
        raise CorpusError(f"{source} is not text: it has a NUL byte at offset {nul}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _too_long(source: str, limit: int) -> CorpusError:
    return CorpusError(f"{source} has more than {limit:,} bytes, too many for this machine's memory; use a part of it")


def _unpacked(data: bytes, source: str, limit: int) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            return read_up_to(file, limit, f"{source}, unpacked,")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{source} is a damaged gzip file: {error}") from None


def _refuse_packed(data: bytes, source: str) -> None:
    if data[257:262] == b"ustar":
        raise CorpusError(f"{source} is a tar archive; {_PIPE.format('tar -xOf')}")
    if data.startswith(GZIP):
        raise CorpusError(f"{source} is compressed twice; {_PIPE.format('zcat')}")
    for beginning, (what, cure) in _PACKED.items():
        if data.startswith(beginning):
            raise CorpusError(f"{source} is {what}; {cure}")


def _decoded(data: bytes, source: str, encodings: Sequence[str], marked: bool) -> str:
    complaints, cure = [], "; give its --encoding"
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            if encoding != UTF_8:
                text.encode()  # unicode_escape and utf-7 can express half of a surrogate pair
            return text.removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            where = f"byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
            complaints.append(f"not {_shown(encoding)}: {where}")
            if tuple(encodings) == (UTF_8,):
                cure = _cure(data, error)
        except (UnicodeError, ValueError) as error:
            complaints.append(f"not {_shown(encoding)}: {error}")
    complaint = f"{source} is {', and '.join(complaints)}"
    if marked:
        raise CorpusError(f"{complaint}, although its byte order mark says so; it is damaged")
    raise CorpusError(complaint + cure)


def _shown(encoding: str) -> str:
    return encoding.upper() if encoding.startswith("utf-") else encoding


def _cure(data: bytes, error: UnicodeDecodeError) -> str:
    """What to do about text that is not UTF-8, as the end of a message."""
    if wide := _wide_encoding(data):
        return f"; it looks like {_shown(wide)} without a byte order mark: give --encoding {wide}"
    if error.reason == "unexpected end of data" and error.start:
        return "; it ends within a character: the file is cut off"
    sample = data[max(0, error.start - SAMPLE) : error.start + SAMPLE]
    text = sample.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(character > "\x7f" for character in text) - bad
    if good > 4 * bad:
        return "; most of it is UTF-8, so it is damaged or mixed: `iconv -c -f UTF-8 -t UTF-8` leaves out what is not"
    high = [byte > 0x7F for byte in sample]
    if sum(map(all, pairwise(high))) > 0.5 * sum(high):  # letters beyond ASCII are seldom neighbours in Western Europe
        return "; give --encoding NAME, such as gb18030, big5, shift_jis, euc_kr, cp1251 or koi8-r"
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "; give --encoding NAME, such as cp850, mac-roman or latin-1"
    return (
        "; if it is Windows-1252 (Western European), give --encoding cp1252, or utf-8,cp1252 if other files are UTF-8"
    )


def _wide_encoding(data: bytes) -> str:
    """The UTF-32 or UTF-16 that `data`, which has no byte order mark, seems to be; empty if none."""
    sample = data[:SAMPLE]
    if len(data) % 2 or b"\0" not in sample:
        return ""
    likely = ""
    # What would be UTF-8, but for the NUL bytes, may be a text with a stray one.
    most = 0.05 if _is_utf_8(sample.replace(b"\0", b"")) else 0.0
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        strange = sum(not (character.isprintable() or character in "\t\n\r\f") for character in text)
        if not text or strange > 0.01 * len(text):
            continue
        plain = sum(character.isascii() for character in text) / len(text)  # at least spaces and line ends
        if plain > most:
            likely, most = encoding, plain
    return likely


def _is_utf_8(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder(UTF_8)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True
