"""The progress bar."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """It is drawn between measurements only: a thread that draws would be measured too."""

    def __init__(self, total: int) -> None:
        columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        console = Console(stderr=True)
        self._progress = Progress(
            *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("", total=total)

    def says(self, what: str) -> None:
        """What is measured next."""
        self._progress.update(self._task, description=what, refresh=True)

    def advance(self) -> None:
        """One measurement is done."""
        self._progress.advance(self._task)
        self._progress.refresh()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
