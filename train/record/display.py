"""The output of a run: a progress bar on a terminal, plain lines elsewhere."""

import math
import os
import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

COLUMNS = 80  # that a line fits in


class Display:
    """A context manager that shows the bar between enter and exit. Losses are nats per character."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("{task.fields[speed]:,.0f} characters/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, step=0, loss=math.nan, speed=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """Print `text` literally, above the bar.

        If that fails because the reader has closed the pipe (`| head -1`) or the disk is full, discard all output.
        """
        try:
            self.console.print(text, markup=False, emoji=False)
        except (OSError, SystemExit):  # newer versions of Rich raise SystemExit for a broken pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.console.quiet = True

    def progress(self, done: float, step: int, loss: float, speed: float) -> None:
        """Move the bar to `done` (0 to 1)."""
        self._bar.update(self._task, completed=min(done, 1.0), step=step, loss=loss, speed=speed)

    def evaluation(self, metrics: dict[str, Any]) -> None:
        """Print a line of metrics.jsonl in a readable form; the perplexity is that of the loss before it."""
        training, validation = metrics["train_loss"], metrics["val_loss"]
        parts = [f"step {metrics['step']:>5}", f"epoch {metrics['epoch']:.2f}", f"loss {training:.4f}"]
        if validation is not None:
            part = f" on {metrics['val_chars']:,}" if "val_chars" in metrics else ""
            parts.append(f"validation {validation:.4f}{part}")
        if metrics.get("val_accuracy") is not None:
            parts.append(f"accuracy {metrics['val_accuracy']:.1%}")
        else:
            value = perplexity(training if validation is None else validation)
            parts.append(f"perplexity {value:{'.4g' if value < 1e6 else '.0e'}}")
        parts.append(f"{metrics['seconds']:.0f} s")
        if len("  ".join(parts)) > COLUMNS:
            del parts[1]
        self.line("  ".join(parts))

    def samples(self, texts: list[str]) -> None:
        """Print the samples that were appended to samples.txt."""
        for text in texts:
            self.line(text.rstrip("\n"))


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats; infinite where it would overflow."""
    return math.exp(loss) if loss < 700 else math.inf
