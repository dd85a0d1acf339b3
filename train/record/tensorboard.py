"""Scalars for TensorBoard, written if the `tensorboard` package is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "perplexity": "perplexity/train",
    "val_accuracy": "accuracy/validation",
    "bits_per_char": "bits_per_char/validation",
    "learning_rate": "learning_rate",
    "chars_per_second": "chars_per_second",
}


class TensorBoard:
    """Event files in `folder`/tensorboard; without the package, nothing is written or imported.

    `at_step` is the step at which the run starts or resumes; later events of an interrupted part are superseded.
    """

    def __init__(self, folder: Path, at_step: int) -> None:
        self._writer = _open(folder / FOLDER, at_step) if _installed() else None

    def evaluation(self, metrics: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl and flush it to the file."""
        if self._writer is None:
            return
        for name, tag in TAGS.items():
            if metrics.get(name) is not None:
                self._writer.add_scalar(tag, metrics[name], metrics["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _installed() -> bool:
    """Whether the package is installed; a specification without an origin is just a folder of that name on the path."""
    specification = find_spec("tensorboard")
    return specification is not None and specification.origin is not None


def _open(folder: Path, at_step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # takes most of a second

    # The purge includes its own step, but the evaluation at `at_step` is not repeated.
    return SummaryWriter(str(folder), purge_step=at_step + 1)
