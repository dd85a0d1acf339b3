"""The models in float64 NumPy, straight from their equations: a reference that shares no code with the graphs' builder.

Vectors are rows; ⊙ multiplies element by element, σ is the logistic sigmoid, a prime marks the next state. Parameters
have PyTorch's names and layout: the rows of a matrix and the entries of a bias are stacked by gate.

    tanh-RNN    h' = tanh(x Wᵀ + b + h Uᵀ + c)
    LSTM        i, f, o = σ(x Wᵀ + b + h Uᵀ + c), g = tanh(…) likewise, stacked as i, f, g, o
                c' = f ⊙ c + i ⊙ g    h' = o ⊙ tanh(c')
    GRU         see rill.train.nets.numpy_gru
    n-grams     x = e[s] + Σ t_k[r_k]: the symbol's own row, and for each order k row r_k of its table (rill.ngrams)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.bundle import CONTEXT
from rill.ngrams import multipliers, rows_of
from rill.train.config import ModelConfig
from rill.train.nets.numpy_gru import GRUWeights, Reset, forward

Array = NDArray[np.float64]
State = tuple[Array, ...]  # h, and an LSTM's c


class Float64:
    """A model of one direction; it is a `reference.Call`. `parameters` are float arrays by PyTorch's names."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, NDArray[Any]]) -> None:
        self._config = config
        self._parameters = {name: np.asarray(values, np.float64) for name, values in parameters.items()}

    def __call__(self, tokens: NDArray[Any], states: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Read `tokens` int64 (B, T), T at least 1, from the states by name (`state_h`, …), each (L, B, H).

        A model with n-gram tables also has the `context` int64 (B, n - 1), its last symbols, the oldest first.
        Returns the logits (B, T, V) and the states after the last step (`next_state_h`, …), all float64, and
        `next_context`.
        """
        config, parameters = self._config, self._parameters
        vectors = {name: values for name, values in states.items() if name != CONTEXT}
        entry = [np.asarray(values, np.float64) for values in vectors.values()]
        ids = np.concatenate([states[CONTEXT], tokens], axis=1) if CONTEXT in states else tokens
        x, exit_ = self._inputs(ids.T, tokens.shape[1]), []
        for layer in range(config.layers):
            h, after = self._layer(layer, x, tuple(part[layer] for part in entry))
            x = x + h if config.residual and layer else h
            exit_.append(after)
        logits = x @ parameters["linear.weight"].T + parameters["linear.bias"]
        parts = zip(vectors, zip(*exit_, strict=True), strict=True)
        outputs = {"logits": logits.transpose(1, 0, 2), **{f"next_{name}": np.stack(part) for name, part in parts}}
        return outputs | ({f"next_{CONTEXT}": ids[:, tokens.shape[1] :]} if CONTEXT in states else {})

    def _inputs(self, ids: NDArray[Any], steps: int) -> Array:
        """The input of the first layer (T, B, I) at the last `steps` of `ids` (time, B): rows of the embedding, or
        one-hot vectors, and of the n-gram tables.
        """
        if self._config.embedding:
            table = self._parameters["embedding.weight"]
        else:
            table = np.eye(self._parameters["rnn.weight_ih_l0"].shape[1])
        x: Array = np.take(table, ids[-steps:], axis=0)
        for order in range(2, self._config.ngrams + 1):
            rows = ngram_rows(ids, steps, order, self._symbols, self._config.ngram_rows)
            x = x + np.take(self._parameters[f"ngrams.{order}.weight"], rows, axis=0)
        return x

    @property
    def _symbols(self) -> int:
        return len(self._parameters["linear.weight"])

    def _layer(self, layer: int, x: Array, state: State) -> tuple[Array, State]:
        """The outputs (T, B, H) of a layer that reads x (T, B, I) from a state of (B, H) parts, and the last state."""
        w, u = (self._parameters[f"rnn.weight_{kind}_l{layer}"] for kind in ("ih", "hh"))
        b, c = (self._parameters.get(f"rnn.bias_{kind}_l{layer}", np.zeros(len(u))) for kind in ("ih", "hh"))
        if self._config.cell == "gru":
            reset: Reset = "before" if self._config.reset == "before" else "after"
            outputs = forward(x, state[0], GRUWeights.from_pytorch(w, u, b, c), reset).outputs
            return outputs, (outputs[-1],)
        take_step = _lstm if self._config.cell == "lstm" else _rnn
        steps = []
        for x_t in x:
            state = take_step(x_t @ w.T + b + state[0] @ u.T + c, state)
            steps.append(state[0])
        return np.stack(steps), state


def ngram_rows(ids: NDArray[Any], steps: int, order: int, symbols: int, hashed_rows: int) -> NDArray[np.int64]:
    """The rows of the table of this `order` at the last `steps` of `ids` int64 (time, B), as `rill.ngrams` defines."""
    total = np.zeros((steps, ids.shape[1]), np.int64)
    for age, factor in enumerate(multipliers(order, symbols)):
        total += factor * ids[len(ids) - steps - age : len(ids) - age]
    return total % rows_of(order, symbols, hashed_rows)


def _rnn(a: Array, state: State) -> State:
    """The next state, from the argument of the tanh (B, H)."""
    return (np.tanh(a),)


def _lstm(a: Array, state: State) -> State:
    """The next state, from the arguments of the gates i, f, g, o (B, 4H)."""
    i, f, g, o = np.split(a, 4, axis=1)
    c = _sigmoid(f) * state[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _sigmoid(a: Array) -> Array:
    """σ(a) = 1 / (1 + exp(-a)); for large negative a, exp overflows to the right result."""
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-a))
    return result
