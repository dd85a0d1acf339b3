"""What a person watching an export sees: on a terminal who does what, lines for what is done, and the closing table."""

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from rill.export.jobs import Job, Row
from rill.export.parity.verify import Parity

PIPED_WIDTH = 240  # columns, where there is no terminal to ask


class Display:
    """A context manager. Between enter and exit there is a bar on standard error, if that is a terminal."""

    def __init__(self, jobs: int) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(TextColumn("exports"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._all = self._bar.add_task("", total=jobs)
        self._doing: dict[int, tuple[Job, str, float]] = {}  # by lane: the job, what of it, since when
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # lines go above the bar, unless they go elsewhere
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, lane: int, job: Job) -> None:
        """The process in `lane` has begun `job`."""
        self._doing[lane] = (job, "starting", time.monotonic())

    def tell(self, lane: int, doing: str) -> None:
        """What the process in `lane` does now."""
        job, _, since = self._doing[lane]
        self._doing[lane] = (job, doing, since)

    def end(self, lane: int, row: Row) -> None:
        """The process in `lane` has ended its job."""
        del self._doing[lane]
        self._bar.advance(self._all)
        if row.exported is None:
            say(f"error: {row.job}: {row.error}", sys.stderr)
            return
        for note in row.notes:
            say(f"{row.job}: {note}", sys.stdout)
        like = "PyTorch" if row.job.precision == "fp32" else "the rounded model"
        say(f"{row.job}: as {like}: {_in_words(row.exported.parity)}", sys.stdout)

    def _picture(self) -> Group:
        now = time.monotonic()
        lines = [
            Text(f"{doing:20} {now - since:3.0f} s  {job}", overflow="ellipsis", no_wrap=True)
            for _, (job, doing, since) in sorted(self._doing.copy().items())
        ]
        return Group(self._bar, *lines)


def say(text: str, stream: TextIO) -> None:
    """Print a line; where the reader has left (`| head -1`) or the disk is full, it goes nowhere."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(rows: Sequence[Row]) -> None:
    """Print the closing table to standard output."""
    measured = any(loss is not None for row in rows for loss in row.bits_per_char)
    table = Table(Column("run", overflow="fold"), "precision", Column("bundle", overflow="fold"))
    for heading in ("size", "worst parity difference", *(["bits per character"] if measured else []), "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        cells = [row.job.source, row.job.precision, "-", "-", "-"]
        if row.exported:
            difference = row.exported.parity.worst_difference
            cells[2:] = [str(row.exported.folder), f"{row.exported.size / 1e6:.2f} MB", f"{difference:.1e}"]
        if measured:
            cells.append(_loss(*row.bits_per_char))
        table.add_row(*map(Text, cells), f"{row.seconds:.1f}", row.status)
    say_table(table)


def say_table(table: Table) -> None:
    """Print a table to standard output, as wide as the terminal, or in full where there is none."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    with console.capture() as captured:
        console.print(table)
    say(captured.get().rstrip("\n"), sys.stdout)


def _loss(bits: float | None, fp32: float | None) -> str:
    if bits is None or fp32 is None:
        return "-"
    return f"{bits:.4f} ({bits - fp32:+.4f})"


def _in_words(parity: Parity) -> str:
    characters = parity.greedy_characters + parity.sampled_characters + parity.filtered_characters + parity.choices
    words = (
        f"logits and states within {parity.worst_difference:.1e} over {parity.rows} rows "
        f"({parity.excused_rows} excused)"
    )
    return f"{words}, {characters:,} characters equal ({parity.excused_characters} excused)" if characters else words
