"""The parameters of a character model as plain arrays, in PyTorch's layout: what both graphs are built from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.run import Run

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class GRULayer:
    """One reset-after GRU layer; gates r, z, n are stacked along the first axis. Absent biases are zeros."""

    input: Matrix  # (3 * hidden, features)
    hidden: Matrix  # (3 * hidden, hidden)
    input_bias: Matrix  # (3 * hidden,)
    hidden_bias: Matrix  # (3 * hidden,)


@dataclass(frozen=True)
class Weights:
    """All parameters of a model, float64 so that what is folded at export is rounded once."""

    embedding: Matrix | None  # (vocab, features); None is one-hot input
    layers: tuple[GRULayer, ...]
    linear: Matrix  # (vocab, hidden)
    linear_bias: Matrix  # (vocab,)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return len(self.linear)

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.linear.shape[1])


def weights_of(run: Run) -> Weights:
    """The parameters in a run folder."""
    arrays = {name: value.double().numpy() for name, value in run.weights.items()}
    zeros = np.zeros(3 * run.model.hidden)
    return Weights(
        embedding=arrays.get("embedding.weight"),
        layers=tuple(
            GRULayer(
                arrays[f"rnn.weight_ih_l{layer}"],
                arrays[f"rnn.weight_hh_l{layer}"],
                arrays.get(f"rnn.bias_ih_l{layer}", zeros),
                arrays.get(f"rnn.bias_hh_l{layer}", zeros),
            )
            for layer in range(run.model.layers)
        ),
        linear=arrays["linear.weight"],
        linear_bias=arrays["linear.bias"],
    )
