"""What a person watching jobs sees: a bar and what each process does on a terminal, lines and tables elsewhere."""

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TextIO, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

PIPED_WIDTH = 240  # columns, where there is no terminal to ask

Result = TypeVar("Result")


class Display(Generic[Result]):
    """A context manager that shows a bar on standard error while it is entered, if that is a terminal.

    `on_end` is called with each result and returns whether the job has failed. Each process has a lane.
    """

    def __init__(self, title: str, total: int, on_end: Callable[[Result], bool]) -> None:
        self._on_end, self._failed = on_end, 0
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(f"{title}  failed: {{task.fields[failed]}}"),
            *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        )
        self._all = self._bar.add_task("", total=total, failed=0)
        self._lanes = Progress(  # the last column is shortened where the terminal is narrow
            TextColumn("{task.fields[step]}", table_column=Column(min_width=21, no_wrap=True)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
        )
        self._tasks: dict[int, TaskID] = {}  # by lane
        self._live = Live(
            Group(self._bar, self._lanes),
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

    def begin(self, lane: int, job: object) -> None:
        """Show that the process in `lane` has begun `job`."""
        self._tasks[lane] = self._lanes.add_task(str(job), total=None, step="starting")

    def report(self, lane: int, step: str) -> None:
        """Show which step the process in `lane` has begun."""
        self._lanes.update(self._tasks[lane], step=step)

    def end(self, lane: int, result: Result) -> None:
        """Show that the process in `lane` has ended its job."""
        self._lanes.remove_task(self._tasks.pop(lane))
        self._failed += self._on_end(result)
        self._bar.update(self._all, advance=1, failed=self._failed)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a line, to standard output by default; where the reader has left or the disk is full, it is discarded."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(table: Table) -> None:
    """Print a table to standard output, as wide as the terminal, or in full where there is none."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    with console.capture() as captured:
        console.print(table)
    print_line(captured.get().rstrip("\n"))
