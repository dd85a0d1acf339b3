"""curves.png, drawn from metrics.jsonl."""

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, never a window

from matplotlib.figure import Figure

from train.files import replace_file


def draw_curves(metrics: Path, image: Path) -> None:
    """Draw training and validation loss (nats per character) against the characters read."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    characters = [line["chars"] for line in lines]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(characters, [line["train_loss"] for line in lines], marker=".", label="training (mean since the last)")
    if lines and lines[-1]["val_loss"] is not None:
        axes.plot(characters, [line["val_loss"] for line in lines], marker=".", label="validation")
    axes.set_xlabel("characters read")
    axes.set_ylabel("loss, nats per character")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    replace_file(image, buffer.getvalue())
