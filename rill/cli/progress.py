"""What a person watching `rill batch` sees on standard error, if that is a terminal: a bar, and nothing elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

REDRAW_SECONDS = 0.25


class Bar:
    """A context manager; the bar is there between enter and exit, and is drawn when it is told something only."""

    def __init__(self, total: int, done: int = 0) -> None:
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
        self._task = self._progress.add_task("", total=total, completed=done)
        self._drawn = 0.0

    def show(self, done: int, words: str) -> None:
        """So many of the total are done; it is not drawn more often than is of use."""
        now = time.monotonic()
        if now - self._drawn >= REDRAW_SECONDS:
            self._progress.update(self._task, completed=done, description=words, refresh=True)
            self._drawn = now

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
