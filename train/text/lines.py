"""Lines as texts of their own: batches of lines of like length, and held-out lines."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rill.train.errors import CorpusError
from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel
from rill.train.text.cutting import LINE_END, UNSEEN, Numbers
from rill.train.text.held_out import TRACKS, WINDOW, Measurement
from rill.train.text.windows import IGNORED
from rill.vocabulary import Vocabulary

MAX_LINE = 10_000  # symbols; what follows in a longer line is not read, so that a step stays short
POOL = 100  # batches: lines of like length are looked for among so many
MEASURED = 2**14  # symbols of all lines that are measured at a time, padding included
MEASURED_LINES = 256


class LineTexts:
    """Lines as ids, each of which a model reads after the start symbol and ends with the end symbol.

    `ids` have LINE_END after each line; a line with UNSEEN is left out. `lengths` (N,) int64 count the symbols to
    predict: those of the line, and the end.
    """

    def __init__(self, ids: Numbers, vocabulary: Vocabulary) -> None:
        ends = np.flatnonzero(ids == LINE_END)
        begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        unseen = np.zeros(len(ends), bool)
        unseen[np.searchsorted(ends, np.flatnonzero(ids == UNSEEN))] = True
        begins, lengths = begins[~unseen], (ends - begins + 1)[~unseen]
        self.left_out = int(unseen.sum())
        self.cut_off = int((lengths > MAX_LINE).sum())
        small = np.int16 if len(vocabulary) < 2**15 else np.int32
        flat = ids.astype(small)
        flat[ends] = vocabulary.end_ids[0]
        self._flat = torch.from_numpy(flat)
        self._begins = torch.from_numpy(begins.astype(np.int64))
        self.lengths = torch.from_numpy(np.minimum(lengths, MAX_LINE).astype(np.int64))
        self._start = vocabulary.start_id

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def symbols(self) -> int:
        """The number of symbols to predict."""
        return int(self.lengths.sum())

    def batch(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `lines`, both (B, T) int64, T that of the longest one; targets are IGNORED after the
        end of a line, and in the whole of line -1.
        """
        lengths = torch.where(lines < 0, 0, self.lengths[lines])
        times = torch.arange(int(lengths.max()))
        within = times < lengths[:, None]
        places = torch.where(within, self._begins[lines][:, None] + times, 0)
        targets = self._flat[places].long()
        inputs = torch.full_like(targets, self._start)
        inputs[:, 1:] = targets[:, :-1]
        return inputs, targets.masked_fill_(~within, IGNORED)


class LineBatches:
    """Batches of `batch` lines of like length, in an order drawn from (seed, epoch); each line once an epoch.

    Lines are shuffled, sorted by length within pools of some batches, and the batches shuffled. What does not fill the
    last batch is padding. A line longer than `window` is learned in several windows, with the state carried over from
    one to the next. Raises CorpusError if there is no line.
    """

    carried = False
    padded = True

    def __init__(self, lines: LineTexts, batch: int, window: int, seed: int) -> None:
        if not len(lines):
            raise CorpusError("the corpus has no line that is not empty")
        self.lines, self.rows, self.window, self.seed = lines, batch, window, seed
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def __len__(self) -> int:
        return math.ceil(len(self.lines) / self.rows)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (B, T) int64; targets are IGNORED where there is padding."""
        return self.lines.batch(self._order(epoch)[index])

    @property
    def padding(self) -> float:
        """Padding in the first epoch, as a fraction of what is read."""
        order = self._order(0)
        lengths = torch.where(order < 0, 0, self.lines.lengths[order])
        return 1 - float(lengths.sum()) / float(lengths.max(1).values.sum() * self.rows)

    def _draw_order(self, epoch: int) -> Tensor:
        """The lines of each batch, (batches, B) int64; -1 for padding."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.lines))
        pools = np.arange(len(order)) // (POOL * self.rows)
        order = order[np.lexsort((self.lines.lengths.numpy()[order], pools))]
        filled = np.full(len(self) * self.rows, -1)
        filled[: len(order)] = order
        batches = filled.reshape(len(self), self.rows)
        return torch.from_numpy(batches[random.permutation(len(batches))])


class HeldOutLines:
    """Held-out lines, each measured from the zero state and the start symbol to the end symbol, which counts.

    Raises CorpusError if there is none.
    """

    def __init__(self, lines: LineTexts, device: torch.device) -> None:
        if not len(lines):
            raise CorpusError("no line is held out; hold out more, or nothing with --validation 0")
        self.lines, self.device = lines, device
        order = np.random.default_rng(0).permutation(len(lines))
        self._order = torch.from_numpy(order)
        self._passes = lru_cache(maxsize=2)(self._make_passes)

    @property
    def characters(self) -> int:
        """The number of symbols that a whole pass predicts, ends included."""
        return self.lines.symbols

    def part(self, limit: int) -> int:
        """The number of symbols that a pass with this limit predicts."""
        return int(self.lines.lengths[self._chosen(limit)].sum())

    @torch.inference_mode()
    def measure(
        self, model: CharacterModel, limit: int | None = None, stop: Callable[[], bool] | None = None
    ) -> Measurement:
        """The mean cross-entropy; with `limit`, of the same drawn lines each time, or of those until `stop`."""
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        for lines in self._passes(limit):
            inputs, targets = (ids.to(self.device) for ids in self.lines.batch(lines))
            state: State | None = None
            for part, expected in zip(torch.split(inputs, WINDOW, 1), torch.split(targets, WINDOW, 1), strict=True):
                logits, state = model(part, state)
                total += F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum").item()
            count += int((targets != IGNORED).sum())
            if stop is not None and stop():
                break
        model.train(was_training)
        return Measurement(total / count, count)

    def _chosen(self, limit: int | None) -> Tensor:
        """As many of the shuffled lines as have TRACKS * limit symbols."""
        if limit is None:
            return self._order
        so_far = self.lines.lengths[self._order].cumsum(0)
        return self._order[: int(torch.searchsorted(so_far, TRACKS * limit)) + 1]

    def _make_passes(self, limit: int | None) -> list[Tensor]:
        """The lines that are measured together, in an order in which the first ones are like the rest."""
        chosen = self._chosen(limit)
        chosen = chosen[torch.sort(self.lines.lengths[chosen], stable=True).indices]
        lengths, passes, begin = self.lines.lengths[chosen].tolist(), [], 0
        while begin < len(lengths):
            end = begin + 1
            while end < len(lengths) and end - begin < MEASURED_LINES and (end - begin + 1) * lengths[end] <= MEASURED:
                end += 1
            passes.append(chosen[begin:end])
            begin = end
        return [passes[index] for index in np.random.default_rng(0).permutation(len(passes))]
