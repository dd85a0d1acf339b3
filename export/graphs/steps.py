"""One step of each cell in the serving graph.

The equations are PyTorch's (`rill.train.nets.cells` has them plainly), folded for speed: a character is an index, so
the first layer's input product is a row of a table made here; biases that are always added together are one; gates of
one kind share a product; and the input's part enters the product of the state as its addend.

W (features, H) and b (H,) belong to a gate's input, U (H, H) and c (H,) to the state. `Moves` keeps the state of rows
that do not take this step the same, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rill.export.graphs.arithmetic import Arithmetic, Float, Operand
from rill.export.graphs.builder import BOOL, Graph
from rill.export.graphs.weights import Layer, Matrix
from rill.train.config import ModelConfig


@dataclass(frozen=True)
class Gates:
    """The parameters of several gates side by side."""

    W: Matrix
    b: Matrix
    U: Matrix
    c: Matrix

    @classmethod
    def of(cls, layer: Layer, total: int, *picks: int, negated: tuple[int, ...] = ()) -> "Gates":
        """The gates `picks` of a layer's `total`; those in `negated` have the opposite sign."""

        def columns(stacked: Matrix) -> Matrix:
            gates = np.split(stacked, total)
            return np.concatenate([-gates[pick] if pick in negated else gates[pick] for pick in picks]).T

        return cls(*map(columns, (layer.input, layer.input_bias, layer.hidden, layer.hidden_bias)))


class Character:
    """The input of the first layer: symbol ids, int64 (batch,)."""

    def __init__(self, arithmetic: Arithmetic, embedding: Matrix | None, ids: str) -> None:
        self._arithmetic, self._embedding, self._ids = arithmetic, embedding, ids

    def product(self, W: Matrix, bias: Matrix) -> str:
        """x W + bias."""
        table = W if self._embedding is None else self._embedding @ W
        return self._arithmetic.rows(table + bias, self._ids)


class Output:
    """The input of the other layers: the operand made of the layers below."""

    def __init__(self, arithmetic: Arithmetic, operand: Operand) -> None:
        self._arithmetic, self._operand = arithmetic, operand

    def product(self, W: Matrix, bias: Matrix) -> str:
        """x W + bias."""
        return self._arithmetic.product(self._operand, W, bias)


class Rows:
    """The input of the first layer where its products are already there, in the order in which a step takes them."""

    def __init__(self, products: Sequence[str]) -> None:
        self._products = iter(products)

    def product(self, W: Matrix, bias: Matrix) -> str:
        """The next product."""
        return next(self._products)


class Columns:
    """An input that only notes which products a step takes of it."""

    def __init__(self) -> None:
        self.taken: list[tuple[Matrix, Matrix]] = []  # W and bias of each

    def product(self, W: Matrix, bias: Matrix) -> str:
        """Note the product."""
        self.taken.append((W, bias))
        return ""


Input = Character | Output | Rows | Columns
State = tuple[str, ...]


class Moves:
    """How states change in a step: only in rows with 1.0 in `active` (batch, 1)."""

    def __init__(self, g: Graph, active: str) -> None:
        self._g, self._active = g, active

    def towards(self, h: str, candidate: str, u: str) -> str:
        """h + u (candidate - h)."""
        g = self._g
        return g.op("Add", h, g.op("Mul", g.op("Mul", u, self._active), g.op("Sub", candidate, h)))

    def replace(self, state: State, new: State) -> State:
        """The new state."""
        g = self._g
        is_active = g.op("Cast", self._active, to=BOOL)
        return tuple(g.op("Where", is_active, after, before) for before, after in zip(state, new, strict=True))


class LateMoves:
    """States that all rows leave in a step, of which `finish` takes some back: what is chosen decides which rows move.

    That costs one product and one sum, or one selection, for each state: no more than to take back what a row that has
    taken its steps did.
    """

    def __init__(self, g: Graph) -> None:
        self._g = g
        self._made: list[tuple[str, str, bool]] = []  # of each state: before; what is added to it, or the new one

    def towards(self, h: str, candidate: str, u: str) -> str:
        """See Moves."""
        way = self._g.op("Mul", u, self._g.op("Sub", candidate, h))
        self._made.append((h, way, True))
        return self._g.op("Add", h, way)

    def replace(self, state: State, new: State) -> State:
        """See Moves."""
        self._made += [(before, after, False) for before, after in zip(state, new, strict=True)]
        return new

    def finish(self, moves: str) -> list[str]:
        """The states after the step, layer by layer: moved in rows with 1.0 in `moves` (batch, 1)."""
        g = self._g
        is_moved = g.op("Cast", moves, to=BOOL) if any(not adds for *_, adds in self._made) else ""
        return [
            g.op("Add", before, g.op("Mul", after, moves)) if adds else g.op("Where", is_moved, after, before)
            for before, after, adds in self._made
        ]


Step = Callable[[Arithmetic, Layer, Input, State, Moves | LateMoves], State]


def gru_step(a: Arithmetic, layer: Layer, x: Input, state: State, moves: Moves | LateMoves) -> State:
    """r, u = σ(x W_ru + h U_ru + b_ru);  n = tanh(x W_n + b_n + r (h U_n + c_n));  h' = h + u (n - h).

    u is 1 - z, so z's parameters change sign; u = 0 leaves h unchanged.
    """
    g, (h,) = a.g, state
    ru, n = Gates.of(layer, 3, 0, 1, negated=(1,)), Gates.of(layer, 3, 2)
    operand = a.operand(h, 1)
    r, u = g.ops("Split", _sigmoid(a, ru, x, operand), out=2, axis=1, num_outputs=2)
    of_state = g.op("Mul", r, a.product(operand, n.U, n.c))
    candidate = g.op("Tanh", g.op("Add", x.product(n.W, n.b), of_state))
    return (moves.towards(h, candidate, u),)


def gru_reset_before_step(a: Arithmetic, layer: Layer, x: Input, state: State, moves: Moves | LateMoves) -> State:
    """Like `gru_step`, but n = tanh(x W_n + (r h) U_n + b_n)."""
    g, (h,) = a.g, state
    ru, n = Gates.of(layer, 3, 0, 1, negated=(1,)), Gates.of(layer, 3, 2)
    r, u = g.ops("Split", _sigmoid(a, ru, x, a.operand(h, 1)), out=2, axis=1, num_outputs=2)
    candidate = _tanh(a, n, x, a.operand(g.op("Mul", r, h), 1))
    return (moves.towards(h, candidate, u),)


def lstm_step(a: Arithmetic, layer: Layer, x: Input, state: State, moves: Moves | LateMoves) -> State:
    """i, f, o = σ(x W_ifo + h U_ifo + b_ifo);  g = tanh(x W_g + h U_g + b_g);  c' = f c + i g;  h' = o tanh(c').

    Nothing bounds c: it may count to thousands, and would multiply and add up the error of ONNX Runtime's Sigmoid,
    2e-7 however small the result. So c' is c / (1 + e_f) + g / (1 + e_i) with e = exp(-…), for which the parameters of
    i and f change sign; all of it is exact relative to the result. Where e overflows, the quotient is 0.
    """
    g, (h, c) = a.g, state
    operand, hidden = a.operand(h, 1), len(layer.hidden) // 4
    o = _sigmoid(a, Gates.of(layer, 4, 3), x, operand)
    ifg = _product(a, Gates.of(layer, 4, 0, 1, 2, negated=(0, 1)), x, operand)
    of_if, of_g = g.ops("Split", ifg, g.constant([2 * hidden, hidden]), out=2, axis=1)
    divisors = g.op("Add", g.constant(1.0), g.op("Exp", of_if))
    of_i, of_f = g.ops("Split", divisors, out=2, axis=1, num_outputs=2)
    new_c = g.op("Add", g.op("Div", c, of_f), g.op("Div", g.op("Tanh", of_g), of_i))
    new_h = g.op("Mul", o, g.op("Tanh", new_c))
    return moves.replace(state, (new_h, new_c))


def rnn_step(a: Arithmetic, layer: Layer, x: Input, state: State, moves: Moves | LateMoves) -> State:
    """h' = tanh(x W + h U + b)."""
    (h,) = state
    return moves.replace(state, (_tanh(a, Gates.of(layer, 1, 0), x, a.operand(h, 1)),))


def step_of(config: ModelConfig) -> Step:
    """The step of a model's cell."""
    if config.cell == "gru":
        return gru_step if config.reset == "after" else gru_reset_before_step
    return lstm_step if config.cell == "lstm" else rnn_step


def products_of(config: ModelConfig, layer: Layer) -> list[tuple[Matrix, Matrix]]:
    """W and bias of each product that a step of the first layer takes of its input, in order."""
    g, columns, state = Graph("columns"), Columns(), tuple(config.state_parts)
    step_of(config)(Float(g), layer, columns, state, LateMoves(g))
    return columns.taken


def _product(a: Arithmetic, gates: Gates, x: Input, operand: Operand) -> str:
    """x W + h U + b."""
    return a.product(operand, gates.U, x.product(gates.W, gates.b + gates.c))


def _sigmoid(a: Arithmetic, gates: Gates, x: Input, operand: Operand) -> str:
    return a.g.op("Sigmoid", _product(a, gates, x, operand))


def _tanh(a: Arithmetic, gates: Gates, x: Input, operand: Operand) -> str:
    return a.g.op("Tanh", _product(a, gates, x, operand))
