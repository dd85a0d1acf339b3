"""The n-gram tables of a model: rows for the last symbols, which are added to the first layer's input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rill.ngrams import multipliers, rows_of


def is_ngram_table(name: str) -> bool:
    """Whether the parameter of this name in a CharacterModel is an n-gram table."""
    return name.startswith("ngrams.")


def order_of(name: str) -> int:
    """The order of the n-gram table that is the parameter of this name in a CharacterModel."""
    return int(name.split(".")[1])


class NgramTables(nn.Module):
    """A table for each order from 2 to `ngrams`, as rill.ngrams defines them: parameters `2.weight`, `3.weight`, ….

    Each has rows of `width` values, which are zero at first: a model begins as if it had no tables. In training, each
    row that is read is left out with the probability `dropout`, and the others are scaled to make up for it.
    """

    def __init__(self, ngrams: int, symbols: int, hashed_rows: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.context_length = ngrams - 1
        self._multipliers: dict[int, tuple[int, ...]] = {}
        for order in range(2, ngrams + 1):
            self.add_module(str(order), _Table(rows_of(order, symbols, hashed_rows), width))
            self._multipliers[order] = multipliers(order, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """The sum of the rows (T, B, width) at each position after the context; ids (context + T, B) int64."""
        total: Tensor | None = None
        for order, factors in self._multipliers.items():
            weight: Tensor = getattr(self, str(order)).weight
            read = F.embedding(self._rows(ids, factors, len(weight)), weight)
            if self.training and self.dropout:
                read = read * F.dropout(read.new_ones(*read.shape[:2], 1), self.dropout)
            total = read if total is None else total + read
        assert total is not None
        return total

    def _rows(self, ids: Tensor, factors: tuple[int, ...], rows: int) -> Tensor:
        """The row of one table at each position, (T, B) int64."""
        first, steps = self.context_length, len(ids) - self.context_length
        terms = (factor * ids[first - age : first - age + steps] for age, factor in enumerate(factors))
        return torch.stack(tuple(terms)).sum(0) % rows


class _Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))
