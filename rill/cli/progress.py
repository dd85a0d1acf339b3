"""The progress bar of `rill score`, `batch` and `bench`: on standard error, where that is a terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

REDRAW_SECONDS = 0.25


class ProgressBar:
    """A bar for the time inside the context; what takes less than REDRAW_SECONDS shows none.

    It is drawn by calls only: a thread that draws would disturb what is measured.
    """

    def __init__(self, total: int, completed: int = 0) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=completed)
        self._drawn = time.monotonic()

    def show(self, completed: int, description: str) -> None:
        """Set both; the bar is not drawn more often than is of use."""
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._progress.update(self._task, completed=completed, description=description)
            self._draw()

    def describe(self, description: str) -> None:
        """Say what is done next."""
        self._progress.update(self._task, description=description)
        self._draw()

    def advance(self) -> None:
        """Count one more."""
        self._progress.advance(self._task)
        self._draw()

    def _draw(self) -> None:
        self._progress.start()
        self._progress.refresh()
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
