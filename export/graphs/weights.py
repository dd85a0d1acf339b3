"""The parameters of a model as plain arrays in PyTorch's layout, from which all graphs are built."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rill.train.record.run import Run

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """One recurrent layer in one direction. Its G gates are stacked along the first axis, and absent biases are zeros.

    The gates are r, z, n (GRU), i, f, g, o (LSTM) or a single one (tanh-RNN).
    """

    input: Matrix  # (G * hidden, features)
    hidden: Matrix  # (G * hidden, hidden)
    input_bias: Matrix  # (G * hidden,)
    hidden_bias: Matrix  # (G * hidden,)


@dataclass(frozen=True)
class Weights:
    """All parameters of a model, float64 so that folded values are rounded only once."""

    embedding: Matrix | None  # (vocab, features); None is one-hot input
    layers: tuple[Layer, ...]  # in the order of PyTorch's states: by layer, then by direction
    linear: Matrix  # (outputs, directions * hidden); the outputs are the vocabulary, or a tagger's labels
    linear_bias: Matrix  # (outputs,)
    ngrams: tuple[Matrix, ...] = ()  # for orders 2, 3, …, each (rows, features), or (rows, vocab) with one-hot input

    @property
    def vocabulary_size(self) -> int:
        """V: the number of symbols that can be read."""
        return int(self.layers[0].input.shape[1]) if self.embedding is None else len(self.embedding)

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.layers[0].hidden.shape[1])


def weights_of(run: Run) -> Weights:
    """The parameters of a run."""
    arrays = {name: value.double().numpy() for name, value in run.weights.items()}

    def layer(suffix: str) -> Layer:
        hidden = arrays[f"rnn.weight_hh_{suffix}"]
        zeros = np.zeros(len(hidden))
        return Layer(
            arrays[f"rnn.weight_ih_{suffix}"],
            hidden,
            arrays.get(f"rnn.bias_ih_{suffix}", zeros),
            arrays.get(f"rnn.bias_hh_{suffix}", zeros),
        )

    directions = ("", "_reverse")[: run.model.directions]
    return Weights(
        embedding=arrays.get("embedding.weight"),
        layers=tuple(layer(f"l{index}{direction}") for index in range(run.model.layers) for direction in directions),
        linear=arrays["linear.weight"],
        linear_bias=arrays["linear.bias"],
        ngrams=tuple(arrays[f"ngrams.{order}.weight"] for order in range(2, run.model.ngrams + 1)),
    )
