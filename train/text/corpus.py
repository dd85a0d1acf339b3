"""Reading text: files, folders, standard input, named corpora."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from rill.train.errors import CorpusError
from rill.train.text.decoding import UTF_8, decode, memory_limit, read_bytes, read_up_to
from rill.train.text.files import Files, files_in, files_like, is_pattern, is_stream, name_of, nothing
from rill.train.text.named import NAMED
from rill.train.text.subtraction import NAME as SUBTRACTION

TEXT_SUFFIXES = (".txt", ".md")
MANY_OTHERS = 10  # times as many files of other suffixes as files that are read


@dataclass(frozen=True)
class Corpus:
    """The documents of a corpus, none of them empty; the number of files that they were read from; and notes for the
    user.
    """

    documents: list[str]
    files: int
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # of the documents

    @cached_property
    def text(self) -> str:
        """All documents, one after another."""
        return join(self.documents)

    def find(self, line: str) -> str:
        """Where a line is: the source and the number of the line; empty if there is no such line."""
        for document, source in zip(self.documents, self.sources, strict=False):
            begin = f"\n{document}\n".find(f"\n{line}\n")
            if begin >= 0:
                return f"{source}, line {document[:begin].count(chr(10)) + 1}"
        return ""

    def without_empty_lines(self) -> "Corpus":
        """The same documents without empty lines, each ending with a newline. Raises CorpusError if nothing is left."""
        documents, sources, empty = [], [], 0
        for document, source in zip_longest(self.documents, self.sources, fillvalue=""):
            text = re.sub("\n{2,}", "\n", document).strip("\n") + "\n"
            empty += document.count("\n") + (not document.endswith("\n")) - text.count("\n") + (text == "\n")
            if text != "\n":
                documents.append(text)
                sources.append(source)
        if not documents:
            raise CorpusError("the corpus has only empty lines")
        notes = (*self.notes, f"empty lines, which are left out: {empty:,}") if empty else self.notes
        return Corpus(documents, self.files, notes, tuple(sources))


def join(documents: Sequence[str]) -> str:
    """One document after another: one that does not end with a newline gets one before the next begins."""
    separated = [text if text.endswith("\n") else text + "\n" for text in documents[:-1]]
    return "".join([*separated, *documents[-1:]])


def read_corpus(specs: Sequence[str], suffixes: Sequence[str] = (), encodings: Sequence[str] = (UTF_8,)) -> Corpus:
    """Read the text that `specs` name, in their order.

    A spec is a named corpus, `-` for standard input, a file, a pattern for files, or a folder: all its files with one
    of the `suffixes` (default: .txt and .md) at any depth, in the order of their paths, without empty ones. A name wins
    over a path (`./pydoc` is the path), and a path over a pattern. Files may be compressed by gzip, and have one of the
    `encodings`. Raises CorpusError.
    """
    reader = _Reader(suffixes, encodings)
    for spec in specs:
        try:
            reader.read(spec)
        except OSError as error:
            raise CorpusError(f"{error.filename or spec} cannot be read: {error.strerror or error}") from None
    if not reader.documents:
        raise CorpusError(f"the corpus {' '.join(specs)} is empty")
    if reader.twice:
        reader.notes.append(f"files that are read twice: {len(reader.twice):,}, such as {reader.twice[0]}")
    notes = (*reader.notes, *_doubts(reader.documents))
    return Corpus(reader.documents, reader.files, notes, tuple(reader.sources))


def _doubts(documents: Sequence[str]) -> list[str]:
    """Notes on characters that hardly belong to the text."""
    marks = sum(text.count("\ufeff") for text in documents)
    replaced = sum(text.count("\ufffd") for text in documents)
    notes = []
    if marks:
        notes.append(
            f"byte order marks (U+FEFF) within the text: {marks:,}; name files one by one instead of joining them"
        )
    if replaced:
        notes.append(f"replacement characters (U+FFFD) in the text: {replaced:,}; it was once read in a wrong encoding")
    return notes


def require_corpora(specs: Sequence[str], tagged: bool) -> None:
    """Raise CorpusError for a spec that names nothing; reads none. They are texts, or `tagged` sequences."""
    for spec in specs:
        if (spec and _path(spec).exists()) or is_stream(spec) or is_pattern(spec):
            continue
        if tagged and spec.partition(":")[0] != SUBTRACTION:
            raise nothing(spec, f"a file of JSON lines, '-' nor {SUBTRACTION}:BITS", [f"{SUBTRACTION}:4"])
        if not tagged and spec not in NAMED:
            raise nothing(spec, f"a file, a folder, '-' nor a named corpus ({', '.join(NAMED)})", NAMED)


def load_corpus(specs: Sequence[str]) -> str:
    """Read the text that `specs` name, as `read_corpus` does."""
    return read_corpus(specs).text


def read_standard_input(content: str) -> bytes:
    """All bytes of standard input, which should be `content`. Raises CorpusError if it is closed."""
    if sys.stdin is None:
        raise CorpusError(f"standard input is closed; pipe {content} into it, or name a file")
    if sys.stdin.buffer.isatty():
        print(f"reading {content} from the terminal, up to Ctrl-D", file=sys.stderr)
    return read_up_to(sys.stdin.buffer, memory_limit(), "standard input")


class _Reader:
    """Reads one spec after another."""

    def __init__(self, suffixes: Sequence[str], encodings: Sequence[str]) -> None:
        self._suffixes, self._encodings = suffixes, encodings
        self._left = memory_limit()
        self._seen: set[tuple[int, int]] = set()
        self.documents: list[str] = []
        self.sources: list[str] = []
        self.files = 0
        self.notes: list[str] = []
        self.twice: list[Path] = []

    def read(self, spec: str) -> None:
        """Read what `spec` names. Raises CorpusError, OSError."""
        path = _path(spec)
        if spec in NAMED:
            self.documents.append(NAMED[spec]())
            self.sources.append(spec)
        elif spec == "-":
            self._add(read_standard_input("a text"), name_of(spec))
        elif path.is_dir() and spec:
            suffixes = self._suffixes or TEXT_SUFFIXES
            self._read_files(files_in(path, suffixes), spec, f"{' and '.join(suffixes)} files in {spec}")
        elif (path.exists() and spec) or is_stream(spec):
            self.files += 1
            self._look(path)
            if not self._add(read_bytes(path, self._left), spec):
                raise CorpusError(f"{spec} is empty")
        elif is_pattern(spec):
            self._read_files(files_like(str(path), self._suffixes), spec, f"files like {spec!r}")
        else:
            raise nothing(spec, f"a file, a folder, '-' nor a named corpus ({', '.join(NAMED)})", NAMED)

    def _read_files(self, found: Files, spec: str, what: str) -> None:
        before = self.files
        for path in found.paths:
            self._look(path)
            self.files += self._add(read_bytes(path, self._left), str(path))
        read = self.files - before
        if not read:
            raise CorpusError(f"all {what} are empty")
        if found.broken:
            self.notes.append(f"links in {spec} that lead nowhere: {len(found.broken):,}, such as {found.broken[0]}")
        others = [suffix for suffix, count in found.others.most_common(3) if suffix and count > MANY_OTHERS * read]
        if others:
            self.notes.append(
                f"files in {spec} that were not read: {found.others.total():,}; add --suffix {' '.join(others)} to read"
                " those instead"
            )

    def _look(self, path: Path) -> None:
        """Notice a file that was read before: what is held out of it is trained on, too."""
        try:
            status = path.stat()
        except OSError:  # reading it will say so
            return
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            self.twice.append(path)
        self._seen.add(identity)

    def _add(self, data: bytes, source: str) -> bool:
        """Add the document in `data`; whether it has any text."""
        self._left -= len(data)
        text = decode(data, source, self._encodings, self._left)
        if text:
            self.documents.append(text)
            self.sources.append(source)
        return bool(text)


def _path(spec: str) -> Path:
    """The path that `spec` may be; a shell leaves `~` in --corpus=~/book.txt and in a quoted pattern as it is."""
    path = Path(spec)
    if spec.startswith("~") and not path.exists():
        try:
            return path.expanduser()
        except RuntimeError:  # there is no such user
            pass
    return path
