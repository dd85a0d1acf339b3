"""The output of `rill batch`: OUT when it is complete, and OUT.part until then.

OUT has one record for each text, in the order of the input, in the form that its name says (`forms`). OUT.part has the
complete ones as JSON lines, in the order of their completion; a run that is killed leaves whole lines there, up to an
incomplete last one. Each line has the fingerprint of its run: a digest of everything that its text depends on.

If OUT is not a regular file but a device, a pipe or a descriptor, it gets the records in the same order, each as soon
as all before it are complete. Nothing of that outlives the run.
"""

import codecs
import json
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from rill.cli.batch.errors import WAYS_OUT, OutputError
from rill.cli.batch.forms import ParquetRows, Writer, form_of
from rill.cli.batch.numbering import Numbering
from rill.cli.batch.unique import SeenTexts
from rill.files import is_replaced, naming, opened, replaced

if sys.platform != "win32":
    import fcntl

SHORT = 8  # hexadecimal digits of a digest


class Fingerprint(NamedTuple):
    """What the texts of a run depend on, each as a digest in hexadecimal."""

    input: str
    parameters: str
    model: str

    def __str__(self) -> str:
        return "-".join(digest[:SHORT] for digest in self)

    def difference(self, run: str) -> str:
        """Say how `run`, found in a file, differs; empty if it does not."""
        if run == str(self):
            return ""
        others = ("another input", "other parameters", "another model")
        pairs = zip(others, str(self).split("-"), run.split("-"), strict=False)
        return f"has texts of {', '.join(other for other, ours, found in pairs if ours != found) or 'another run'}"


class BatchOutput:
    """OUT and OUT.part for the texts of a run; a context manager. Raises OutputError and OSError.

    With `unique`, a text that is the same as an earlier one, in the order of the input, does not come to OUT.
    `done` counts the texts that are complete, `refused` those of them that have an error instead, and `dropped`, once
    OUT is complete, those that were not unique; `torn` is the size in bytes of an incomplete line that a killed run
    left, and that is removed. No other run can write to the files at the same time. `is_resumable` is false where OUT
    is not a regular file.
    """

    def __init__(self, out: Path, numbering: Numbering, run: Fingerprint, unique: bool = False) -> None:
        self.out, self.part = out, out.with_name(f"{out.name}.part")
        self._numbering, self._run, self._form = numbering, run, form_of(out)
        self._offsets = array("q", [0]) * numbering.texts  # of each text's line, plus 1; 0: it is not complete
        self.is_unique, self._seen = unique, SeenTexts(numbering.texts) if unique else None
        self.done = self.refused = self.dropped = self.torn = self._end = 0
        self.is_resumable = is_replaced(out)
        self.is_complete = self.is_resumable and out.exists()
        self._stream: BinaryIO | None = None
        self._sent = 0  # texts
        if not self.is_resumable:
            if self._form is ParquetRows:
                raise OutputError(f"{out} is not a regular file, which the form of Parquet needs")
            self._stream = opened(out)
            self._writer: Writer = self._form(self._stream)
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
            return
        self._file = out.open("rb") if self.is_complete else self.part.open("a+b")
        try:
            if self.is_complete:
                self._read_complete()
            else:
                self._read_part()
        except BaseException:
            self._file.close()
            raise

    @property
    def left(self) -> int:
        """Return how many texts are not complete."""
        return len(self._offsets) - self.done

    def is_wanted(self, text: int) -> bool:
        """Tell whether the text of this number is not complete."""
        return not self._offsets[text]

    def add(self, line: int, fields: Mapping[str, Any]) -> None:
        """Write what belongs to a line of the input; the operating system has it when this returns."""
        text = self._numbering.number(line, fields.get("index", 0))
        assert text is not None
        written = {"line": line, "run": str(self._run), **fields}
        raw = json.dumps(written, ensure_ascii=False).encode() + b"\n"
        with naming(self.part):
            self._file.write(raw)
            self._file.flush()
        self._count(text, self._end, "error" in fields)
        self._end += len(raw)
        if self._stream:
            with naming(self.out):
                self._send(self._stream)

    def finish(self, on_record: Callable[[int], None] = lambda count: None) -> None:
        """Write all texts, which are complete, to OUT in their order, and remove OUT.part.

        `on_record` gets the number of texts so far, before each.
        """
        assert self.done == len(self._offsets)
        if not self.is_resumable:
            return
        with replaced(self.out) as ordered:
            writer = self._form(ordered, self.out, str(self._run))
            for text in range(len(self._offsets)):
                on_record(text)
                self._write(text, writer)
            writer.close()
        self.part.unlink()
        self.is_complete = True

    def _write(self, text: int, writer: Writer) -> None:
        """Write the record of a text, unless it was there before."""
        self._file.seek(self._offsets[text] - 1)
        raw = _line(self._file.readline())
        record = json.loads(raw) if writer.needs_record or self._seen else None
        if self._seen and record and "text" in record and not self._seen.add(record["text"]):
            self.dropped += 1
        else:
            writer.write(raw, record)

    def _send(self, stream: BinaryIO) -> None:
        """Write the texts whose turn has come."""
        while self._sent < len(self._offsets) and self._offsets[self._sent]:
            self._write(self._sent, self._writer)
            self._sent += 1
        stream.flush()
        self._file.seek(0, os.SEEK_END)

    def _read_complete(self) -> None:
        """Check that OUT is what this very run has made, or would make."""
        if counts := self._form.counts(self.out, self._run.difference):
            written, self.refused = counts
        else:
            self._read(self.out)
            written = self.done
        self.done, self.dropped = len(self._offsets), len(self._offsets) - written
        if self.dropped and not (self._seen and written):
            raise OutputError(f"{self.out} has only {written:,} of {self.done:,} lines; {WAYS_OUT}")
        if not counts and self._file.seek(0, os.SEEK_END) > self._end:
            raise OutputError(f"{self.out} ends in the middle of a line; {WAYS_OUT}")
        self.part.unlink(missing_ok=True)  # where a run was killed between its last two steps

    def _read_part(self) -> None:
        """Continue from what a former run left, if anything."""
        self._lock()
        self._read(self.part)
        self.torn = self._file.seek(0, os.SEEK_END) - self._end
        self._file.truncate(self._end)

    def _read(self, path: Path) -> None:
        """Find out which lines the file has, up to an incomplete last one. Raises OutputError for other runs' lines."""
        self._file.seek(0)
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                return
            if not raw.strip():  # an editor's
                self._end += len(raw)
                continue
            try:
                found = json.loads(raw)
                line, run, is_refused = found["line"], found["run"], "error" in found
                text = self._numbering.number(line, found.get("index", 0))
            except (ValueError, LookupError, TypeError, RecursionError):
                raise OutputError(f"{path}, line {number} was not written by rill batch; {WAYS_OUT}") from None
            if differs := self._run.difference(str(run)):
                raise OutputError(f"{path} {differs}; {WAYS_OUT}")
            if text is None:
                raise OutputError(f"{path}, line {number} is damaged; {WAYS_OUT}")
            self._count(text, self._end, is_refused)
            self._end += len(raw)

    def _count(self, text: int, offset: int, is_refused: bool) -> None:
        if self.is_wanted(text):
            self.done += 1
            self.refused += is_refused
        self._offsets[text] = offset + 1

    def _lock(self) -> None:
        if sys.platform == "win32":  # two runs at once must be avoided by hand there
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another rill batch is writing {self.part}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_resumable and not self.is_complete and not self._end:
            self.part.unlink(missing_ok=True)  # it has nothing to continue from
        self._file.close()
        if self._stream:
            with suppress(OSError):  # what could be written is written
                self._stream.close()


def _line(raw: bytes) -> bytes:
    """Return a line as it was written, although an editor may have saved the file with its own marks and line ends."""
    return raw.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n"
