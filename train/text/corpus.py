"""Reading text: files, folders, standard input, named corpora."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rill.train.errors import CorpusError
from rill.train.text.named import NAMED

TEXT_SUFFIXES = (".txt", ".md")


def load_corpus(specs: Sequence[str]) -> str:
    """Read the text that `specs` name, in their order, one document after another.

    A spec is a named corpus, `-` for standard input, a file, or a folder: all its .txt and .md files at any depth, in
    the order of their paths, without empty ones. A name wins over a path (`./pydoc` is the path). A document that does
    not end with a newline gets one before the next begins. Raises CorpusError, OSError.
    """
    documents = [document for spec in specs for document in _documents(spec)]
    if not any(documents):
        raise CorpusError(f"the corpus {' '.join(specs)} is empty")
    separated = [text if text.endswith("\n") else text + "\n" for text in documents[:-1]]
    return "".join([*separated, documents[-1]])


def _documents(spec: str) -> list[str]:
    if spec in NAMED:
        return [NAMED[spec]()]
    if spec == "-":
        return [decode(read_standard_input("a text"), "standard input")]
    path = Path(spec)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        if not files:
            raise CorpusError(f"{path} has no {' or '.join(TEXT_SUFFIXES)} files; name other files one by one")
        texts = [text for file in files if (text := decode(file.read_bytes(), str(file)))]
        if not texts:
            raise CorpusError(f"all {' and '.join(TEXT_SUFFIXES)} files in {path} are empty")
        return texts
    if not path.exists():
        raise CorpusError(f"{spec!r} is neither a file, a folder, '-' nor a named corpus ({', '.join(NAMED)})")
    text = decode(path.read_bytes(), str(path))
    if not text:
        raise CorpusError(f"{path} is empty")
    return [text]


def read_standard_input(content: str) -> bytes:
    """All bytes of standard input, which should be `content`. Raises CorpusError if it is closed."""
    if sys.stdin is None:
        raise CorpusError(f"standard input is closed; pipe {content} into it, or name a file")
    return sys.stdin.buffer.read()


def decode(data: bytes, source: str) -> str:
    """Decode UTF-8 `data`: without a byte order mark, and with every line end (CR LF, CR) as one newline.

    Raises CorpusError, naming `source` and the offset of the first byte that is not UTF-8 text.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CorpusError(f"{source} looks like UTF-16; convert it to UTF-8 first")
    nul = data.find(b"\0")
    if nul >= 0:
        raise CorpusError(f"{source} is not text: it has a NUL byte at offset {nul}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
