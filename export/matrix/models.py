"""The configurations of the parity matrix, all or pair by pair, and random models for them."""

from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, NamedTuple

import torch

from rill.bundle import PRECISIONS
from rill.ngrams import DEFAULT_ROWS
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.model import CharacterModel
from rill.train.record.run import Run
from rill.vocabulary import Vocabulary

SYMBOLS = tuple(sorted(ascii_letters + digits + " \n.,é"))
CELLS = {"gru": ("gru", "after"), "gru-before": ("gru", "before"), "lstm": ("lstm", "after"), "rnn": ("rnn", "after")}
DEPTHS = ((1, False), (2, False), (2, True), (6, False), (6, True))  # layers, residual; a single layer has no sum
HIDDEN, WIDER = 32, (100, 256)
EMBEDDINGS, BIASES = (0, 8), (True, False)
NGRAMS, HASHED_ROWS = (1, 2, 3), 500  # the symbols have a row for each bigram, and share those of trigrams
BATCHES, TIMES = (1, 3, 64), (1, 7, 64)


class Network(NamedTuple):
    """A kind of model and the precision of its graphs. `cell` is a key of CELLS, `depth` one of DEPTHS."""

    cell: str
    depth: tuple[int, bool]
    hidden: int
    embedding: int
    bias: bool
    precision: str
    ngrams: int = 1

    @property
    def config(self) -> ModelConfig:
        """The model section of such a run's config.json."""
        (cell, reset), (layers, residual) = CELLS[self.cell], self.depth
        return ModelConfig(
            cell=cell,
            reset=reset,
            layers=layers,
            residual=residual,
            hidden=self.hidden,
            embedding=self.embedding,
            bias=self.bias,
            ngrams=self.ngrams,
            ngram_rows=HASHED_ROWS if self.ngrams > 1 else DEFAULT_ROWS,
        )

    def __str__(self) -> str:
        layers, residual = self.depth
        parts = [self.cell, f"{layers} layer{'s' * (layers > 1)}{' residual' * residual}", f"hidden {self.hidden}"]
        parts += [f"embedding {self.embedding}" if self.embedding else "one-hot", "bias" if self.bias else "no bias"]
        parts += [f"{self.ngrams}-grams"] * (self.ngrams > 1)
        return ", ".join([*parts, self.precision])


class Configuration(NamedTuple):
    """One configuration of the matrix: a network, and the shape of its calls."""

    network: Network
    batch: int
    time: int

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, time {self.time}"


def all_configurations() -> list[Configuration]:
    """The full product with HIDDEN units, and a few WIDER networks and some with n-grams, in all batches and times.

    In those every two values of any two axes meet. The configurations of a network are adjacent.
    """
    ngrams = pairwise([*_network_axes((HIDDEN,)), NGRAMS[1:]])
    networks = [*product(*_network_axes((HIDDEN,))), *pairwise(_network_axes(WIDER)), *ngrams]
    return [Configuration(Network(*values), *shape) for values in networks for shape in product(BATCHES, TIMES)]


def quick_configurations() -> list[Configuration]:
    """A few, in which every two values of any two axes meet; those of a network are adjacent."""
    rows = pairwise([*_network_axes((HIDDEN, WIDER[0])), NGRAMS, BATCHES, TIMES])
    return sorted(Configuration(Network(*row[:-2]), *row[-2:]) for row in rows)


def _network_axes(hidden: tuple[int, ...]) -> list[Sequence[Any]]:
    """The values of each field of Network."""
    return [tuple(CELLS), DEPTHS, hidden, EMBEDDINGS, BIASES, PRECISIONS]


def pairwise(axes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows with a value of each axis in which every two values of any two axes meet: few rows, not the fewest.

    Each row begins with a pair that has not met yet; every other axis, in order, then takes the value that meets the
    most values of the row for the first time. Equal axes give equal rows.
    """
    columns = [[(axis, value) for value in values] for axis, values in enumerate(axes)]
    apart = dict.fromkeys(pair for first, second in combinations(columns, 2) for pair in product(first, second))
    rows = []
    while apart:
        row = dict(next(iter(apart)))
        for axis, column in enumerate(columns):
            if axis not in row:
                _, row[axis] = max(column, key=lambda entry: sum(_pair(entry, met) in apart for met in row.items()))
        entries = sorted(row.items())
        for pair in combinations(entries, 2):
            apart.pop(pair, None)
        rows.append(tuple(value for _, value in entries))
    return rows


def _pair(one: tuple[int, Any], other: tuple[int, Any]) -> tuple[tuple[int, Any], tuple[int, Any]]:
    """Two values with their axes, the earlier axis first."""
    return (one, other) if one[0] < other[0] else (other, one)


def random_run(config: ModelConfig, seed: int = 0, symbols: tuple[str, ...] = SYMBOLS) -> Run:
    """A run in memory: random weights, scaled so that greedy texts are varied at any depth, but not noise.

    With PyTorch's default weights the input hardly reaches the sixth layer, which repeats one character forever; much
    larger weights amplify every rounding.
    """
    torch.manual_seed(seed)
    model = CharacterModel(config, len(symbols))
    deeper = 2 if config.cell == "rnn" else 4  # gates damp the signal
    gains = {"rnn.weight_ih_l0": 8, "rnn.weight_ih": deeper, "rnn.weight_hh": 1.2, "linear.weight": 2}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(next((gain for start, gain in gains.items() if name.startswith(start)), 1))
        for table in model.ngrams.parameters() if model.ngrams is not None else ():  # zero in a new model
            table.normal_(std=0.3)
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Run(Path("random"), config, TrainingConfig(steps=1), Vocabulary(symbols), (), weights)
