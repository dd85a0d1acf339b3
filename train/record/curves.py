"""curves.png, drawn from metrics.jsonl."""

import io
import json
import math
from pathlib import Path
from typing import Any

from rill.train.record.display import perplexity
from rill.train.record.files import replace_file

# Each row's axis, and its curves by their keys in metrics.jsonl. Training figures are means since the last line.
PANELS = (
    ("loss, nats per character", {"train_loss": "training", "val_loss": "validation"}),
    ("perplexity", {"perplexity": "training", "val_perplexity": "validation"}),
    ("accuracy", {"val_accuracy": "validation"}),
    ("learning rate", {"learning_rate": "learning rate"}),
)

MAX_VALUE = 1e100  # Matplotlib's margins overflow before floats do


def draw_curves(metrics: Path, image: Path) -> None:
    """Draw losses, perplexities, accuracy and learning rate against the characters read and against the time.

    Omits rows that no line of `metrics` has values for, and single values that are null or beyond 1e100. A perplexity
    that spans more than a factor of ten gets a logarithmic axis. Raises OSError.
    """
    import matplotlib  # noqa: PLC0415  a third of a second, which a run begins without

    matplotlib.use("Agg")  # a file, never a window
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["val_loss"] is not None:
            line["val_perplexity"] = perplexity(line["val_loss"])
    panels = [panel for panel in PANELS if any(_holds(lines, key) for key in panel[1])]
    height = 0.75 + 2.5 * len(panels)  # inches
    figure = Figure(figsize=(11, height))
    grid = figure.subplots(len(panels), 2, sharex="col", sharey="row", squeeze=False)
    # Fixed margins, because fitting them to the labels takes as long as all the drawing.
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.55 / height, top=1 - 0.15 / height, wspace=0.04, hspace=0.08)
    for row, (title, labels) in zip(grid, panels, strict=True):
        for axes, x in zip(row, ("chars", "seconds"), strict=True):
            for key, label in labels.items():
                if _holds(lines, key):
                    axes.plot([line[x] for line in lines], _values(lines, key), marker=".", label=label)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        if title == "perplexity" and _decades([value for key in labels for value in _values(lines, key)]) > 1:
            row[0].set_yscale("log")
        if title == "learning rate":
            row[0].set_ylim(bottom=0)
        row[0].set_ylabel(title)
        if len(labels) > 1:
            row[0].legend()
    grid[-1, 0].set_xlabel("characters read")
    grid[-1, 0].xaxis.set_major_formatter(EngFormatter())
    grid[-1, 1].set_xlabel("seconds")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    replace_file(image, buffer.getvalue())


def _holds(lines: list[dict[str, Any]], key: str) -> bool:
    return any(line.get(key) is not None for line in lines)


def _values(lines: list[dict[str, Any]], key: str) -> list[float]:
    """The values of `key`, with NaN, which is not drawn, for missing and too large ones."""
    values = [line.get(key) for line in lines]
    return [value if value is not None and value < MAX_VALUE else math.nan for value in values]


def _decades(values: list[float]) -> float:
    """The number of powers of ten that the positive values span."""
    positive = [value for value in values if value > 0]
    return math.log10(max(positive) / min(positive)) if positive else 0.0
