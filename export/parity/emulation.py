"""int8 in NumPy: the arithmetic of `rill.export.graphs.arithmetic.Int8`, written plainly, as a reference.

Sums of integers are exact in both; everything else is float32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.export.graphs.arithmetic import STATE_STEPS, TABLE_STEPS, WEIGHT_STEPS, Quantized
from rill.export.graphs.steps import Gates
from rill.export.graphs.weights import Weights
from rill.export.parity.float64 import ngram_rows
from rill.train.config import ModelConfig

Floats = NDArray[Any]  # float32
Part = Floats  # (batch, hidden)
State = tuple[Part, ...]  # h, and an LSTM's c


@dataclass(frozen=True)
class _Operand:
    """Values (batch, features) as whole steps of bound / 127."""

    steps: NDArray[np.float64]
    bound: float

    @classmethod
    def of(cls, x: Floats, bound: float) -> "_Operand":
        scale = np.float32(bound / STATE_STEPS)
        return cls(np.clip(np.rint(x / scale), -STATE_STEPS - 1, STATE_STEPS + 1).astype(np.float64), bound)

    def times(self, matrix: Quantized) -> Floats:
        """The product with a matrix (features, columns)."""
        sums = self.steps @ matrix.integers.astype(np.float64)  # integers below 2^53: exact
        return (sums * (np.float32(self.bound / STATE_STEPS) * matrix.scale)).astype(np.float32)


# The rows of the symbols (batch,) and those of each n-gram table, or the output of the layers below.
Read = list[NDArray[np.int64]] | _Operand


class _Gate:
    """One gate, rounded. The input's part, a row of a table in the first layer, includes `bias` (H,)."""

    def __init__(self, weights: Weights, index: int, total: int, pick: int, resets_after: bool = False) -> None:
        gates = Gates.of(weights.layers[index], total, pick, negated=(1,) if total == 3 else ())
        bias = gates.b if resets_after else gates.b + gates.c
        self.U, self.c = Quantized.of(gates.U, WEIGHT_STEPS), gates.c.astype(np.float32)
        if index:
            self._W, self._bias = Quantized.of(gates.W, WEIGHT_STEPS), bias.astype(np.float32)
        else:
            product = gates.W if weights.embedding is None else weights.embedding @ gates.W
            if weights.ngrams:  # float32, like the n-gram tables
                self._table = (product + bias).astype(np.float32)
            else:
                self._table = Quantized.of(product + bias, TABLE_STEPS).matrix()
            self._ngrams = [(table @ gates.W).astype(np.float32) for table in weights.ngrams]

    def from_input(self, x: Read) -> Floats:
        """x W + bias."""
        if isinstance(x, _Operand):
            return x.times(self._W) + self._bias
        own, *others = x
        return sum((table[rows] for table, rows in zip(self._ngrams, others, strict=True)), self._table[own])

    def __call__(self, x: Read, h: _Operand) -> Floats:
        """x W + h U + bias."""
        return h.times(self.U) + self.from_input(x)


class Emulation:
    """An int8 model that takes single steps."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._config, self._symbols = config, weights.vocabulary_size
        gates = {"gru": 3, "lstm": 4, "rnn": 1}[config.cell]
        self._layers = [
            [
                _Gate(weights, index, gates, pick, resets_after=gates == 3 and pick == 2 and config.reset == "after")
                for pick in range(gates)
            ]
            for index in range(config.layers)
        ]
        self._linear = Quantized.of(weights.linear.T, WEIGHT_STEPS)
        self._linear_bias = weights.linear_bias.astype(np.float32)

    def step(self, ids: NDArray[np.int64], before: list[State], seen: list[State]) -> tuple[list[State], Floats]:
        """The states by layer after reading the last of `ids` (batch, n), and the logits (batch, vocab).

        With n-gram tables, n - 1 symbols are before it.

        The input of a higher layer and of the output layer is taken from `seen`, the graph's states after this step: a
        rounding in the last bit could otherwise move the value by a whole quantization step.
        """
        take_step = {"gru": self._gru, "lstm": _lstm, "rnn": _rnn}[self._config.cell]
        orders = range(2, self._config.ngrams + 1)
        rows = [ngram_rows(ids.T, 1, order, self._symbols, self._config.ngram_rows)[0] for order in orders]
        after, own = [], [ids[:, -1], *rows]
        total, bound, operand = np.zeros(0), 0, _Operand(np.zeros(0), 0)
        for index, (layer, state, (h, *_)) in enumerate(zip(self._layers, before, seen, strict=True)):
            after.append(take_step(layer, operand if index else own, state))
            total, bound = (total + h, bound + 1) if self._config.residual and index else (h, 1)
            operand = _Operand.of(total, bound)
        return after, operand.times(self._linear) + self._linear_bias

    def _gru(self, layer: list[_Gate], x: Read, state: State) -> State:
        (h,), (reset, update, candidate) = state, layer
        operand = _Operand.of(h, 1)
        r, u = _sigmoid(reset(x, operand)), _sigmoid(update(x, operand))
        if self._config.reset == "after":
            n = np.tanh(candidate.from_input(x) + r * (operand.times(candidate.U) + candidate.c))
        else:
            n = np.tanh(candidate(x, _Operand.of(r * h, 1)))
        return (h + u * (n - h),)


def _lstm(layer: list[_Gate], x: Read, state: State) -> State:
    h, c = state
    operand = _Operand.of(h, 1)
    i, f, g, o = (gate(x, operand) for gate in layer)
    with np.errstate(over="ignore"):  # exact relative to the result, as c may be large
        c = c / (np.float32(1) + np.exp(-f)) + np.tanh(g) / (np.float32(1) + np.exp(-i))
    return _sigmoid(o) * np.tanh(c), c


def _rnn(layer: list[_Gate], x: Read, state: State) -> State:
    (gate,), (h,) = layer, state
    return (np.tanh(gate(x, _Operand.of(h, 1))),)


def _sigmoid(a: Floats) -> Floats:
    half = np.float32(0.5)
    return half + half * np.tanh(half * a)
