"""The loss on text the model was not trained on."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rill.train.errors import CorpusError
from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel

TRACKS = 16  # more are faster, and measure more cold starts: 64 on 111,000 characters cost 0.0035 nats
WINDOW = 256


class Measured(NamedTuple):
    """A loss in nats per character, over how many characters; a tagger's share of sequences right at every step."""

    loss: float
    characters: int
    accuracy: float | None = None


class HeldOut(Protocol):
    """What a model is measured on and never trained on."""

    @property
    def characters(self) -> int:
        """How many characters a whole pass predicts."""
        ...

    def measure(self, model: CharacterModel, limit: int | None = None) -> Measured:
        """The loss of `model`; `limit` allows to look at a part only, the same one each time."""
        ...


class HeldOutText:
    """The held-out text as parallel tracks; the state is carried along each of them, from zero.

    Every character but the first is predicted once, except for fewer than 16 at the end. Raises CorpusError for a text
    that is not longer than `window`, the training's.
    """

    def __init__(self, ids: Tensor, window: int) -> None:
        if len(ids) <= window:
            raise CorpusError(
                f"the held-out text has {len(ids)} characters, too few for one window of {window};"
                " hold out more, use a smaller --window, or hold out nothing with --validation 0"
            )
        # Tracks shorter than a window would measure the cold start more than the model.
        tracks = max(1, min(TRACKS, len(ids) // (4 * WINDOW)))
        length = (len(ids) - 1) // tracks
        self.inputs = ids[: tracks * length].view(tracks, length)
        self.targets = ids[1 : tracks * length + 1].view(tracks, length)

    @property
    def characters(self) -> int:
        """How many characters a whole pass predicts."""
        return self.inputs.numel()

    @torch.inference_mode()
    def measure(self, model: CharacterModel, limit: int | None = None) -> Measured:
        """The mean cross-entropy; with `limit`, over the first `limit` characters of each track."""
        inputs, targets = self.inputs[:, :limit], self.targets[:, :limit]
        was_training = model.training
        model.eval()
        state: State | None = None
        total = 0.0
        for part, expected in zip(torch.split(inputs, WINDOW, 1), torch.split(targets, WINDOW, 1), strict=True):
            logits, state = model(part, state)
            total += F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum").item()
        model.train(was_training)
        return Measured(total / inputs.numel(), inputs.numel())
