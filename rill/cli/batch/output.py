"""The output of `rill batch`: OUT, as soon as it is complete, and OUT.part until then.

OUT has one JSON object for each line of the input, in the same order. OUT.part has those that are complete, in the
order in which they came to be; a run that was killed leaves whole lines there, up to a torn last one. Each line says
which run it is of: a digest of all that its texts depend on.
"""

import json
import os
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

if sys.platform != "win32":
    import fcntl

SHORT = 8  # hexadecimal digits of a digest
_WAYS_OUT = "remove it, or choose another --out"


class TextsError(ValueError):
    """What is there already does not fit, and is left as it is; the message names the file and says what to do."""


class Run(NamedTuple):
    """What the texts of a run depend on, each as a digest in hexadecimal."""

    input: str
    parameters: str
    model: str

    def __str__(self) -> str:
        return "-".join(digest[:SHORT] for digest in self)


class Texts:
    """OUT and OUT.part for an input of `lines` lines; a context manager. Raises TextsError and OSError.

    `done` counts the lines that are complete, `refused` those of them that have an error in place of a text; `torn` are
    the bytes of a line that a killed run left, and that are cut. Nobody else can write to the files meanwhile.
    """

    def __init__(self, out: Path, lines: int, run: Run) -> None:
        self.out, self.part = out, out.with_name(f"{out.name}.part")
        self._run = run
        self._places = array("q", bytes(8 * lines))  # of each line in the file, from 1; 0: it is not complete
        self.done = self.refused = self.torn = self._end = 0
        self.is_complete = out.exists()
        self._file: BinaryIO = out.open("rb") if self.is_complete else self.part.open("a+b")
        try:
            if self.is_complete:
                self._take_complete()
            else:
                self._take_part()
        except BaseException:
            self._file.close()
            raise

    def is_wanted(self, line: int) -> bool:
        """Whether a line of the input, from 1, is not complete."""
        return not self._places[line - 1]

    def add(self, line: int, fields: Mapping[str, Any]) -> None:
        """A line of the input is complete; it is with the operating system when this returns."""
        written = {"line": line, "run": str(self._run), **fields}
        raw = json.dumps(written, ensure_ascii=False).encode() + b"\n"
        self._file.write(raw)
        self._file.flush()
        self._have(line, self._end, "error" in fields)
        self._end += len(raw)

    def finish(self) -> None:
        """All lines are complete: write them to OUT in their order, and remove OUT.part."""
        assert self.done == len(self._places)
        aside = self.out.with_name(f"{self.out.name}.tmp")
        try:
            with aside.open("wb") as ordered:
                for place in self._places:
                    self._file.seek(place - 1)
                    ordered.write(self._file.readline())
                ordered.flush()
                os.fsync(ordered.fileno())
            aside.replace(self.out)
        finally:
            aside.unlink(missing_ok=True)
        self.part.unlink()
        self.is_complete = True

    def _take_complete(self) -> None:
        """OUT is there: it should be what this very run has made, or would make."""
        self._read(self.out)
        if self.done < len(self._places):
            raise TextsError(f"{self.out} has only {self.done:,} of {len(self._places):,} lines; {_WAYS_OUT}")
        self.part.unlink(missing_ok=True)  # where a run was killed between its last two steps

    def _take_part(self) -> None:
        """Go on with what there is, if there is anything."""
        self._lock()
        self._read(self.part)
        self.torn = self._file.seek(0, os.SEEK_END) - self._end
        self._file.truncate(self._end)

    def _read(self, path: Path) -> None:
        """Find out which lines the file has, up to a torn last one. Raises TextsError for lines of other runs."""
        self._file.seek(0)
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                found = json.loads(raw)
                line, run, is_refused = found["line"], found["run"], "error" in found
            except (ValueError, LookupError, TypeError, RecursionError):
                raise TextsError(f"{path}, line {number} is none of rill batch; {_WAYS_OUT}") from None
            if run != str(self._run):
                raise TextsError(f"{path} {self._difference(str(run))}; {_WAYS_OUT}")
            if type(line) is not int or line not in range(1, len(self._places) + 1):
                raise TextsError(f"{path}, line {number} is damaged; {_WAYS_OUT}")
            self._have(line, self._end, is_refused)
            self._end += len(raw)

    def _difference(self, run: str) -> str:
        """What `run`, found in a file, has in place of ours."""
        others = ("another input", "other parameters", "another model")
        pairs = zip(others, str(self._run).split("-"), run.split("-"), strict=False)
        return f"has texts of {', '.join(other for other, ours, found in pairs if ours != found) or 'another run'}"

    def _have(self, line: int, place: int, is_refused: bool) -> None:
        if self.is_wanted(line):
            self.done += 1
            self.refused += is_refused
        self._places[line - 1] = place + 1

    def _lock(self) -> None:
        if sys.platform == "win32":  # there two runs at once must be avoided by hand
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TextsError(f"another rill batch is writing {self.part}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
