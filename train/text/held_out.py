"""The loss on held-out data, which the model is not trained on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.train.errors import CorpusError
from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel
from rill.train.text.tagging import TaggedSequence, encode_by_length
from rill.vocabulary import Vocabulary

TRACKS = 16  # more are faster but measure more cold starts: 64 on 111,000 characters cost 0.0035 nats
WINDOW = 256
MAX_SEQUENCES = 1024  # per pass of a tagger
MAX_STEPS = 2**16  # of all sequences of a pass together, so that long ones need no more memory


class Measurement(NamedTuple):
    """A loss in nats per character, the number of characters, and a tagger's fraction of correct sequences."""

    loss: float
    characters: int
    accuracy: float | None = None


class HeldOut(Protocol):
    """Data that a model is measured on."""

    @property
    def characters(self) -> int:
        """The number of characters that a whole pass predicts."""
        ...

    def part(self, limit: int) -> int:
        """The number of characters that a pass with this limit predicts."""
        ...

    def measure(
        self, model: CharacterModel, limit: int | None = None, stop: Callable[[], bool] | None = None
    ) -> Measurement:
        """The loss of `model`; with `limit`, perhaps on a part only, which is the same each time.

        As soon as `stop` is true, on what has been measured until then, which is never nothing.
        """
        ...


class HeldOutText:
    """The held-out text as parallel tracks; the state starts at zero and is carried along each of them.

    Every character but the first is predicted once, except fewer than 16 at the end. Raises CorpusError for a text that
    is not longer than `window`, the window of training.
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
        """The number of characters that a whole pass predicts."""
        return self.inputs.numel()

    def part(self, limit: int) -> int:
        """The number of characters that a pass with this limit predicts."""
        return self.inputs[:, :limit].numel()

    @torch.inference_mode()
    def measure(
        self, model: CharacterModel, limit: int | None = None, stop: Callable[[], bool] | None = None
    ) -> Measurement:
        """The mean cross-entropy; with `limit`, over the first `limit` characters of each track, or until `stop`."""
        inputs, targets = self.inputs[:, :limit], self.targets[:, :limit]
        was_training = model.training
        model.eval()
        state: State | None = None
        total, count = 0.0, 0
        for part, expected in zip(torch.split(inputs, WINDOW, 1), torch.split(targets, WINDOW, 1), strict=True):
            logits, state = model(part, state)
            total += F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum").item()
            count += expected.numel()
            if stop is not None and stop():
                break
        model.train(was_training)
        return Measurement(total / count, count)


class HeldOutSequences:
    """At least one held-out tagged sequence. Raises CorpusError for a symbol or label that the model lacks."""

    def __init__(
        self, sequences: Sequence[TaggedSequence], vocabulary: Vocabulary, labels: Sequence[str], device: torch.device
    ) -> None:
        self._groups = encode_by_length(sequences, vocabulary, labels, device)
        self.sequences = len(sequences)

    @property
    def characters(self) -> int:
        """The number of labelled steps, over all sequences."""
        return sum(targets.numel() for _, targets in self._groups)

    def part(self, limit: int) -> int:
        """The number of labelled steps: a pass measures all, whatever the limit."""
        return self.characters

    @torch.inference_mode()
    def measure(
        self, model: nn.Module, limit: int | None = None, stop: Callable[[], bool] | None = None
    ) -> Measurement:
        """The mean cross-entropy in nats per step, and the fraction of sequences with every step labelled correctly.

        All sequences are measured, whatever the `limit`, unless `stop` is true after some of them. `model` maps symbol
        ids (B, T) int64 to logits (B, T, labels) and a state; a step's label is the one with the largest logit.
        """
        was_training = model.training
        model.eval()
        nats, correct, count, sequences = 0.0, 0, 0, 0
        for part, expected in self._passes():
            logits, _ = model(part)
            nats += F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum").item()
            correct += int((logits.argmax(-1) == expected).all(1).sum())
            count, sequences = count + expected.numel(), sequences + len(expected)
            if stop is not None and stop():
                break
        model.train(was_training)
        return Measurement(nats / count, count, correct / sequences)

    def _passes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, both (B, T): as many sequences at a time as memory allows."""
        for inputs, targets in self._groups:
            rows = max(1, min(MAX_SEQUENCES, MAX_STEPS // inputs.shape[1]))
            yield from zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True)
