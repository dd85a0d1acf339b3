"""The output of `rill batch`: OUT when it is complete, and OUT.part until then.

OUT has one JSON object for each line of the input, in the same order. OUT.part has those that are complete, in the
order of their completion; a run that is killed leaves whole lines there, up to an incomplete last one. Each line has
the fingerprint of its run: a digest of everything that its text depends on.

If OUT is not a regular file but a device, a pipe or a descriptor, it gets the lines in the same order, each as soon as
all before it are complete. Nothing of that outlives the run.
"""

import codecs
import json
import os
import sys
import tempfile
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from rill.files import is_replaced, naming, opened, replaced

if sys.platform != "win32":
    import fcntl

SHORT = 8  # hexadecimal digits of a digest
_WAYS_OUT = "remove it, or choose another --out"


class OutputError(ValueError):
    """An existing file is not of this run, and is left as it is; the message names it and says what to do."""


class Fingerprint(NamedTuple):
    """What the texts of a run depend on, each as a digest in hexadecimal."""

    input: str
    parameters: str
    model: str

    def __str__(self) -> str:
        return "-".join(digest[:SHORT] for digest in self)


class BatchOutput:
    """OUT and OUT.part for an input of `lines` lines; a context manager. Raises OutputError and OSError.

    `done` counts the lines that are complete, `refused` those of them that have an error instead of a text; `torn` is
    the size in bytes of an incomplete line that a killed run left, and that is removed. No other run can write to the
    files at the same time. `is_resumable` is false where OUT is not a regular file.
    """

    def __init__(self, out: Path, lines: int, run: Fingerprint) -> None:
        self.out, self.part = out, out.with_name(f"{out.name}.part")
        self._run = run
        self._offsets = array("q", bytes(8 * lines))  # of each line in the file, plus 1; 0: it is not complete
        self.done = self.refused = self.torn = self._end = 0
        self.is_resumable = is_replaced(out)
        self.is_complete = self.is_resumable and out.exists()
        self._stream: BinaryIO | None = None
        self._sent = 0  # lines
        if not self.is_resumable:
            self._stream = opened(out)
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

    def is_wanted(self, line: int) -> bool:
        """Tell whether a line of the input, from 1, is not complete."""
        return not self._offsets[line - 1]

    def add(self, line: int, fields: Mapping[str, Any]) -> None:
        """Write what belongs to a line of the input; the operating system has it when this returns."""
        written = {"line": line, "run": str(self._run), **fields}
        raw = json.dumps(written, ensure_ascii=False).encode() + b"\n"
        with naming(self.part):
            self._file.write(raw)
            self._file.flush()
        self._count(line, self._end, "error" in fields)
        self._end += len(raw)
        if self._stream:
            with naming(self.out):
                self._send(self._stream)

    def finish(self) -> None:
        """Write all lines, which are complete, to OUT in their order, and remove OUT.part."""
        assert self.done == len(self._offsets)
        if not self.is_resumable:
            return
        with replaced(self.out) as ordered:
            for offset in self._offsets:
                self._file.seek(offset - 1)
                ordered.write(_line(self._file.readline()))
        self.part.unlink()
        self.is_complete = True

    def _send(self, stream: BinaryIO) -> None:
        """Write the lines whose turn has come."""
        while self._sent < len(self._offsets) and self._offsets[self._sent]:
            self._file.seek(self._offsets[self._sent] - 1)
            stream.write(self._file.readline())
            self._sent += 1
        stream.flush()
        self._file.seek(0, os.SEEK_END)

    def _read_complete(self) -> None:
        """Check that OUT is what this very run has made, or would make."""
        self._read(self.out)
        if self.done < len(self._offsets):
            raise OutputError(f"{self.out} has only {self.done:,} of {len(self._offsets):,} lines; {_WAYS_OUT}")
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
            except (ValueError, LookupError, TypeError, RecursionError):
                raise OutputError(f"{path}, line {number} was not written by rill batch; {_WAYS_OUT}") from None
            if run != str(self._run):
                raise OutputError(f"{path} {self._difference(str(run))}; {_WAYS_OUT}")
            if type(line) is not int or line not in range(1, len(self._offsets) + 1):
                raise OutputError(f"{path}, line {number} is damaged; {_WAYS_OUT}")
            self._count(line, self._end, is_refused)
            self._end += len(raw)

    def _difference(self, run: str) -> str:
        """Say how `run`, found in a file, differs from ours."""
        others = ("another input", "other parameters", "another model")
        pairs = zip(others, str(self._run).split("-"), run.split("-"), strict=False)
        return f"has texts of {', '.join(other for other, ours, found in pairs if ours != found) or 'another run'}"

    def _count(self, line: int, offset: int, is_refused: bool) -> None:
        if self.is_wanted(line):
            self.done += 1
            self.refused += is_refused
        self._offsets[line - 1] = offset + 1

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
        self._file.close()
        if self._stream:
            with suppress(OSError):  # what could be written is written
                self._stream.close()


def _line(raw: bytes) -> bytes:
    """Return a line as it was written, although an editor may have saved the file with its own marks and line ends."""
    return raw.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n") + b"\n"
