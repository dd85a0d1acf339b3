"""The forms of the output of `rill batch`, by the end of its name: JSON lines, a text a line, and Parquet.

A writer gets the records of all texts in their order. What is in its file then depends on them alone: a run that was
interrupted has the same bytes as one that was not.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from rill.cli.batch.errors import WAYS_OUT, OutputError
from rill.cli.batch.line_breaks import LINE_BREAKS
from rill.files import replaced

NO_PYARROW = "needs the package 'pyarrow'; install it with: pip install 'rill-text[parquet]'"
ROWS, ROW_BYTES = 65_536, 64 * 2**20  # of a row group, at most; of its texts, about


class Counts(NamedTuple):
    """How many records a complete output has, and how many of those have an error instead of a text."""

    written: int
    refused: int


class Writer(Protocol):
    """Writes records into a file, `out` in the end if it is regular; `run` is the fingerprint of the run."""

    needs_record: bool  # else `write` may get None

    def __init__(self, file: BinaryIO, out: Path | None = None, run: str = "") -> None: ...

    @staticmethod
    def counts(out: Path, difference: Callable[[str], str]) -> "Counts | None":
        """Read what the complete file `out` has; None if it is a file of lines that say so themselves.

        `difference` says what a fingerprint has that ours has not. Raises OutputError where another run, or none, has
        written the file.
        """

    def write(self, raw: bytes, record: dict[str, Any] | None) -> None:
        """Write a record: a line of JSON, and what it says."""

    def close(self) -> None:
        """Write what is left; the file stays open."""


class JsonLines:
    """The records as they are."""

    needs_record = False

    def __init__(self, file: BinaryIO, out: Path | None = None, run: str = "") -> None:
        self._file = file

    @staticmethod
    def counts(out: Path, difference: Callable[[str], str]) -> Counts | None:
        """Return None: each line has its run."""
        return None

    def write(self, raw: bytes, record: dict[str, Any] | None) -> None:
        """Write a line."""
        self._file.write(raw)

    def close(self) -> None:
        """Do nothing."""


class TextLines:
    """The texts alone, one a line. A prompt that was refused has no line.

    The file cannot say which run it is of: a second one beside it, X.smi.run, does.
    """

    needs_record = True

    def __init__(self, file: BinaryIO, out: Path | None = None, run: str = "") -> None:
        self._file, self._out, self._run = file, out, run
        self._digest, self._written, self._refused = hashlib.sha256(), 0, 0

    def write(self, raw: bytes, record: dict[str, Any] | None) -> None:
        """Write a text."""
        assert record is not None
        if "error" in record:
            self._refused += 1
            return
        text = record["text"]
        if any(character in text for character in LINE_BREAKS):
            raise OutputError(
                f"the text of line {record['line']} has a line break, which a file with a text a line cannot hold"
            )
        line = text.encode() + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._written += 1

    def close(self) -> None:
        """Write the file beside."""
        if self._out is None:
            return
        of = {"run": self._run, "texts": self._written, "refused": self._refused}
        with replaced(_beside(self._out)) as file:
            file.write(json.dumps(of | {"sha256": self._digest.hexdigest()}).encode() + b"\n")

    @staticmethod
    def counts(out: Path, difference: Callable[[str], str]) -> Counts:
        """Read what a complete file has; see Writer."""
        try:
            of = json.loads(_beside(out).read_bytes())
            run, written, refused, digest = str(of["run"]), int(of["texts"]), int(of["refused"]), of["sha256"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            raise OutputError(
                f"{out} was not written by rill batch, or {_beside(out).name} is lost; {WAYS_OUT}"
            ) from None
        if differs := difference(run):
            raise OutputError(f"{out} {differs}; {WAYS_OUT}")
        with out.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise OutputError(f"{out} has changed since rill batch wrote it; {WAYS_OUT}")
        return Counts(written + refused, refused)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


class ParquetRows:
    """A table with a row a record; `rill.run` in its metadata is the run's fingerprint."""

    needs_record = True

    def __init__(self, file: BinaryIO, out: Path | None = None, run: str = "") -> None:
        import pyarrow as pa  # noqa: PLC0415  # of an extra
        from pyarrow.parquet import ParquetWriter  # noqa: PLC0415

        self._schema = pa.schema(
            [
                pa.field("line", pa.int64(), nullable=False),
                pa.field("index", pa.int32()),
                pa.field("id", pa.string(), nullable=False),
                pa.field("seed", pa.uint64(), nullable=False),
                pa.field("text", pa.string()),
                pa.field("chars", pa.int64()),
                pa.field("finish_reason", pa.string()),
                pa.field("matches", pa.bool_()),
                pa.field("logprob", pa.float64()),
                pa.field("error", pa.string()),
            ]
        )
        self._from_rows, self._run, self._bytes, self._refused = pa.Table.from_pylist, run, 0, 0
        self._rows: list[dict[str, Any]] = []
        self._writer = ParquetWriter(file, self._schema, compression="zstd", use_dictionary=["finish_reason"])

    def write(self, raw: bytes, record: dict[str, Any] | None) -> None:
        """Add a row."""
        assert record is not None
        self._refused += "error" in record
        self._rows.append({**record, "id": str(record["id"])})
        self._bytes += len(raw)
        if len(self._rows) == ROWS or self._bytes >= ROW_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the end of the file."""
        if self._rows:
            self._flush()
        self._writer.add_key_value_metadata({"rill.run": self._run, "rill.refused": str(self._refused)})
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._from_rows(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    @staticmethod
    def counts(out: Path, difference: Callable[[str], str]) -> Counts:
        """Read what a complete file has; see Writer."""
        from pyarrow import ArrowException  # noqa: PLC0415
        from pyarrow.parquet import read_metadata  # noqa: PLC0415

        try:
            found = read_metadata(out)
            run, refused = found.metadata[b"rill.run"].decode(), int(found.metadata[b"rill.refused"])
        except (ArrowException, OSError, LookupError, TypeError, ValueError):
            raise OutputError(f"{out} was not written by rill batch; {WAYS_OUT}") from None
        if differs := difference(run):
            raise OutputError(f"{out} {differs}; {WAYS_OUT}")
        return Counts(found.num_rows, refused)


def form_of(out: Path) -> type[Writer]:
    """Return the form of a file by its name. Raises OutputError where a package lacks."""
    match out.suffix.lower():
        case ".smi":
            return TextLines
        case ".parquet":
            if find_spec("pyarrow") is None:
                raise OutputError(f"--out {out} {NO_PYARROW}")
            return ParquetRows
        case _:
            return JsonLines
