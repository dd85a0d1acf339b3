"""Batches for training: windows of a text, whose targets are one character later, or tagged sequences."""

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rill.train.errors import CorpusError
from rill.train.text.tagging import TaggedSequence, encode_by_length
from rill.vocabulary import Vocabulary

IGNORED = -100  # in place of the target of padding, which F.cross_entropy leaves out


class Windows(Protocol):
    """Batches by (epoch, index), so that a resumed run takes the next one without replaying any.

    `len(windows)` is the number of batches in an epoch. `carried` says whether the state at the end of one batch is the
    initial state of the next one; every epoch begins with a zero state. A batch of more than `window` steps is learned
    in parts of so many. `padded` says whether targets may be IGNORED.
    """

    carried: bool
    padded: bool
    window: int

    def __len__(self) -> int: ...

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, T) int64."""
        ...


class SequentialWindows:
    """The text cut into `batch` parallel tracks of equal length, read side by side, `window` characters at a time.

    Every character is predicted exactly once per epoch, except fewer than `batch` at the end of the text, which do not
    fill a row. The last window of an epoch may be shorter. Raises CorpusError if a track is shorter than a window.
    """

    carried = True
    padded = False

    def __init__(self, ids: Tensor, batch: int, window: int) -> None:
        length = (len(ids) - 1) // batch
        if length < window:
            raise CorpusError(
                f"{len(ids)} characters cannot be cut into {batch} tracks of at least one window of {window};"
                " use a larger corpus, or a smaller --batch or --window"
            )
        self.inputs = ids[: batch * length].view(batch, length)
        self.targets = ids[1 : batch * length + 1].view(batch, length)
        self.window = window

    def __len__(self) -> int:
        return math.ceil(self.inputs.shape[1] / self.window)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, T) int64; the same in every epoch."""
        part = slice(index * self.window, (index + 1) * self.window)
        return self.inputs[:, part], self.targets[:, part]


class RandomWindows:
    """Windows that do not overlap, from an offset and in an order drawn from (seed, epoch); zero state.

    Raises CorpusError if the text does not fill one batch.
    """

    carried = False
    padded = False

    def __init__(self, ids: Tensor, batch: int, window: int, seed: int) -> None:
        # The offset takes up to `window` characters, and the last target one more.
        self._length = (len(ids) - window) // (window * batch)
        if self._length < 1:
            raise CorpusError(
                f"{len(ids)} characters do not fill a batch of {batch} random windows of {window};"
                " use a larger corpus, or a smaller --batch or --window"
            )
        self.ids, self.rows, self.window, self.seed = ids, batch, window, seed
        self._starts = lru_cache(maxsize=1)(self._draw_starts)

    def __len__(self) -> int:
        return self._length

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, T) int64."""
        starts = self._starts(epoch)[index * self.rows : (index + 1) * self.rows]
        positions = starts[:, None] + torch.arange(self.window, device=self.ids.device)  # (B, T)
        return self.ids[positions], self.ids[positions + 1]

    def _draw_starts(self, epoch: int) -> Tensor:
        random = np.random.default_rng((self.seed, epoch))
        offset = random.integers(self.window)
        order = random.permutation(self._length * self.rows)
        return torch.from_numpy(offset + order * self.window).to(self.ids.device)


class SequenceBatches:
    """Batches of up to `batch` tagged sequences of one length, in an order drawn from (seed, epoch); zero state.

    Every sequence is read exactly once per epoch. Nothing is padded, so that neither direction of a network reads
    padding; the last batch of each length may be smaller. Raises CorpusError for a symbol or label that `vocabulary` or
    `labels` lacks.
    """

    carried = False
    padded = False
    window = sys.maxsize  # the whole sequence, which may be read in both directions

    def __init__(
        self,
        sequences: Sequence[TaggedSequence],
        vocabulary: Vocabulary,
        labels: Sequence[str],
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._groups = encode_by_length(sequences, vocabulary, labels, device)
        self._length = sum(math.ceil(len(inputs) / batch) for inputs, _ in self._groups)
        self.rows, self.seed, self.device = batch, seed, device
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def __len__(self) -> int:
        return self._length

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Symbol ids and label ids, both (B, T) int64."""
        group, rows = self._order(epoch)[index]
        inputs, targets = self._groups[group]
        return inputs[rows], targets[rows]

    def _draw_order(self, epoch: int) -> list[tuple[int, Tensor]]:
        """For every batch, its group and its rows in that group, (B,) int64."""
        random = np.random.default_rng((self.seed, epoch))
        batches = [
            (group, rows)
            for group, (inputs, _) in enumerate(self._groups)
            for rows in torch.split(torch.from_numpy(random.permutation(len(inputs))).to(self.device), self.rows)
        ]
        return [batches[index] for index in random.permutation(len(batches))]
