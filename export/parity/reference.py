"""The references of the serving graphs, one step at a time: PyTorch, or for int8 the NumPy emulation."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from rill.bundle import CONTEXT
from rill.export.graphs.arithmetic import STATE_STEPS, rounded
from rill.export.graphs.weights import Weights
from rill.export.parity.compare import Array, Named, row_maxima
from rill.export.parity.emulation import Emulation
from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel

ROUNDING = 2.0**-23  # the standard deviation of a weight's relative perturbation
GATES = 2.0**-23  # likewise the absolute one of a gate in ONNX Runtime's LSTM, which a large cell multiplies
PERTURBATIONS = 16  # of all weights
MARGIN = 4.0  # times the largest change of the result; for equal roundings the ratio is seldom above 1

# From tokens [batch, time] and the states by name ("state_h", …) to the outputs by name ("next_state_h", …).
Call = Callable[[Array, Named], Named]


class Reference(Protocol):
    """The model that a graph is compared with."""

    def step(self, tokens: Array, before: Named, seen: Named) -> Named:
        """The outputs after one step, including logits [batch, 1, vocab].

        `tokens` [batch]; states [layers, batch, hidden] `before` the step, and after it as `seen` in a graph.
        """

    def rounding_bounds(self, tokens: Array, before: Named) -> Named:
        """How far rounding may move each row's outputs [batch] in the steps that read `tokens` [batch, time]."""


class PyTorch:
    """The model in PyTorch, float32. `inexact_gates` says that the graph's gates have an absolute error."""

    def __init__(self, model: CharacterModel, inexact_gates: bool = False) -> None:
        self._model, self._inexact_gates = model, inexact_gates

    def step(self, tokens: Array, before: Named, seen: Named) -> Named:
        """See Reference."""
        return pytorch_call(self._model)(tokens[:, None], before)

    def rounding_bounds(self, tokens: Array, before: Named) -> Named:
        """A few times the change of PyTorch's own result when each weight, or gate, changes by a rounding."""
        generator = torch.Generator().manual_seed(0)
        expected = pytorch_call(self._model)(tokens, before)
        largest = {output: np.zeros(len(tokens)) for output in expected}
        for _ in range(PERTURBATIONS):
            perturbed = deepcopy(self._model)
            for weight in perturbed.parameters():
                weight.mul_(1 + ROUNDING * torch.randn(weight.shape, generator=generator))
            perturbed.scratch = self._inexact_gates  # the equations, in which a gate is a value of its own
            with _InexactGates(GATES if self._inexact_gates else 0.0, generator):
                outputs = pytorch_call(perturbed)(tokens, before)
            for output, values in outputs.items():
                distances = row_maxima(output, np.abs(values - expected[output]))
                largest[output] = np.maximum(largest[output], distances)
        return {output: MARGIN * values for output, values in largest.items()}


class _InexactGates(TorchFunctionMode):
    """Adds a random error of this standard deviation to each sigmoid."""

    def __init__(self, error: float, generator: torch.Generator) -> None:
        super().__init__()
        self._error, self._generator = error, generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.sigmoid or not self._error:
            return result
        return result + self._error * torch.randn(result.shape, generator=self._generator)


class Int8:
    """The emulation of int8."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._emulation = Emulation(config, weights)
        self._slack = 0.0
        if config.reset == "before":  # quantizes r h, which no output shows: a last bit may move it by a whole step
            self._slack = max(float(np.abs(layer.hidden).max()) for layer in weights.layers) / STATE_STEPS

    def step(self, tokens: Array, before: Named, seen: Named) -> Named:
        """See Reference."""
        names = [name for name in before if name != CONTEXT]
        layers = range(len(before[names[0]]))

        def by_layer(states: Named) -> list[tuple[Array, ...]]:
            return [tuple(states[name][layer] for name in names) for layer in layers]

        ids = np.column_stack([before[CONTEXT], tokens]) if CONTEXT in before else tokens[:, None]
        after, logits = self._emulation.step(ids, by_layer(before), by_layer(seen))
        parts = zip(names, zip(*after, strict=True), strict=True)
        outputs = {"logits": logits[:, None], **{f"next_{name}": np.stack(part) for name, part in parts}}
        return outputs | ({f"next_{CONTEXT}": ids[:, 1:]} if CONTEXT in before else {})

    def rounding_bounds(self, tokens: Array, before: Named) -> Named:
        """One quantization step of the states of a GRU that resets before the product; otherwise 0."""
        return {"logits": np.zeros(len(tokens))} | {
            f"next_{name}": np.full(len(tokens), self._slack) for name in before
        }


def round_weights(model: CharacterModel) -> None:
    """Give a model the weights of its portable int8 graph."""
    for name, weight in model.named_parameters():
        weight.copy_(torch.from_numpy(rounded(name, weight.double().numpy())))


def pytorch_call(model: CharacterModel) -> Call:
    """The PyTorch model over whole texts, as a `Call`."""

    def call(tokens: Array, states: Named) -> Named:
        parts = (_by_batch(name, torch.from_numpy(values)) for name, values in states.items())
        logits, last = model(torch.from_numpy(tokens), tuple(parts))
        named = zip(states, last, strict=True)
        next_states = {f"next_{name}": _by_batch(name, values).numpy() for name, values in named}
        return {"logits": logits.numpy(), **next_states}

    return call


def _by_batch(name: str, values: torch.Tensor) -> torch.Tensor:
    """The context as the other side has it: the model's is (n - 1, batch)."""
    return values.t().contiguous() if name == CONTEXT else values


def next_states(outputs: Named) -> Named:
    """The states that the next call starts from."""
    return {name.removeprefix("next_"): values for name, values in outputs.items() if name.startswith("next_")}
