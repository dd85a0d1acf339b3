"""From a text to batches of windows: what the network reads, and the same one character later."""

import math
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rill.train.errors import CorpusError


class Windows(Protocol):
    """Batches by (epoch, index): a resumed run asks for the next one, and nothing has to be replayed.

    `len(windows)` is the number of batches in an epoch. `carried` says whether the state at the end of one batch is the
    state at the beginning of the next one; it is zero at the start of every epoch in any case.
    """

    carried: bool

    def __len__(self) -> int: ...

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, T) int64."""
        ...


class SequentialWindows:
    """The text cut into `batch` parallel tracks of equal length, read side by side, `window` characters at a time.

    Every character is predicted exactly once an epoch, but for fewer than `batch` at the end of the text, which do not
    fill a row. The last window of an epoch may be shorter. Raises CorpusError if
    a track is shorter than a window.
    """

    carried = True

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
        """Inputs and targets, both (B, T) int64; every epoch is the same."""
        part = slice(index * self.window, (index + 1) * self.window)
        return self.inputs[:, part], self.targets[:, part]


class RandomWindows:
    """Windows that do not overlap, from a random offset, in a random order drawn from (seed, epoch); zero state.

    Raises CorpusError if the text does not fill one batch.
    """

    carried = False

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
