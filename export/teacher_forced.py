"""Teacher-forced comparison: logits and states of a graph and of PyTorch after the same text.

A trained network can be locally unstable: from some states it multiplies a rounding error a thousandfold within a few
steps, whoever computes it (PyTorch's float32 strays as far from its own float64 there). So a row that differs by more
than the tolerance is looked at again, from the state that the graph began with, and if it follows the network along
another rounding it is excused, and counted:

- the call is walked through: the graph's state after each number of steps must be one step of PyTorch's from the
  graph's state before;
- in a bidirectional model no state is one step from another, for each layer reads what the one below made of the whole
  text: there the row must differ no more than a few times what PyTorch's own result moves by when each weight moves by
  a rounding.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from export.bundle import Bundle
from export.compare import Array, ParityError, decode_feeds, row_maxima, rows_beyond
from export.sampling import Sampling
from train.model import CharacterModel

Named = dict[str, Array]
# From tokens [batch, time] and the states by name, "state_h" among them, to outputs by name, "next_state_h" among them.
Call = Callable[[Array, Named], Named]

ROUNDING = 2.0**-23  # the standard deviation of a weight's relative move
MOVES = 16  # of all weights
MOST_MOVED = 4.0  # times the largest move of the result; between equals it is seldom above 1


class Compared(NamedTuple):
    """The largest differences of the rows that were not excused, and how many rows there were."""

    worst: dict[str, float]  # by output
    rows: int
    excused: int

    @property
    def worst_state(self) -> float:
        """The largest of all states' differences."""
        return max(value for output, value in self.worst.items() if output.startswith("next_state_"))


def teacher_forced(name: str, graph: Call, model: CharacterModel, bundle: Bundle, rng: np.random.Generator) -> Compared:
    """Compare the two over chained calls. Raises ParityError for a row beyond the tolerance that has no excuse."""
    plain = pytorch_call(model)
    worst: dict[str, float] = {}
    rows = excused = 0
    for entry, texts in _chains(bundle, rng):
        state = plain_state = entry
        for tokens in texts:
            got, expected = graph(tokens, state), plain(tokens, plain_state)
            beyond = np.zeros(len(tokens), bool)
            for output, values in got.items():
                beyond |= rows_beyond(output, values, expected[output])
            if beyond.any():
                if model.config.bidirectional:
                    _weigh(name, got, model, tokens, state)
                else:
                    _walk(name, graph, plain, tokens, state)
            for output, values in got.items():
                distances = row_maxima(output, np.abs(values - expected[output]))[~beyond]
                worst[output] = max(worst.get(output, 0.0), float(distances.max(initial=0)))
            rows, excused = rows + len(tokens), excused + int(beyond.sum())
            state, plain_state = _next_state(got), _next_state(expected)
            plain_state = {part: np.where(beyond[:, None], state[part], plain_state[part]) for part in state}
    return Compared(worst, rows, excused)


def _chains(bundle: Bundle, rng: np.random.Generator) -> Iterator[tuple[Named, list[Array]]]:
    """Random states in (-1, 1) by name, each with the texts [batch, time] of its chained calls."""
    symbols = len(bundle.vocabulary)
    for batch in (1, *rng.integers(2, 20, size=3)):
        shapes = {part: [batch if axis == "batch" else int(axis) for axis in shape] for part, shape in bundle.states}
        state = {part: rng.uniform(-1, 1, shape).astype(np.float32) for part, shape in shapes.items()}
        yield state, [rng.integers(symbols, size=(batch, time)) for time in (1, *rng.integers(1, 40, size=4))]


def _next_state(outputs: Named) -> Named:
    """The states of the next call."""
    return {name.removeprefix("next_"): values for name, values in outputs.items() if name.startswith("next_")}


def _walk(name: str, graph: Call, plain: Call, tokens: Array, entry: Named) -> None:
    """Show that a call is a chain of PyTorch's steps, for all its rows. Raises ParityError at a step that is not.

    The graph is called for 1, 2, 3, ... steps, in the same batch: what it does wrong over time or between rows shows.
    """
    before = entry
    for time in range(1, tokens.shape[1] + 1):
        got, expected = graph(tokens[:, :time], entry), plain(tokens[:, time - 1 : time], before)
        for output, values in got.items():
            last = values[:, -1:] if output == "logits" else values
            if rows_beyond(output, last, expected[output]).any():
                distance = np.abs(last - expected[output]).max()
                raise ParityError(
                    f"{name}: {output} differs from PyTorch's by {distance:.2e} in one step, more than 1e-5 + 1e-5 |x|"
                )
        before = _next_state(got)


def _weigh(name: str, got: Named, model: CharacterModel, tokens: Array, entry: Named) -> None:
    """Show that a call strays from PyTorch's no further than rounding explains, in all its rows. Raises ParityError."""
    generator = torch.Generator().manual_seed(0)
    expected = pytorch_call(model)(tokens, entry)
    largest_move = {output: np.zeros(len(tokens)) for output in got}
    for _ in range(MOVES):
        moved = deepcopy(model)
        for weight in moved.parameters():
            weight.mul_(1 + ROUNDING * torch.randn(weight.shape, generator=generator))
        for output, values in pytorch_call(moved)(tokens, entry).items():
            move = row_maxima(output, np.abs(values - expected[output]))
            largest_move[output] = np.maximum(largest_move[output], move)
    for output, values in got.items():
        distance = row_maxima(output, np.abs(values - expected[output]))
        explained = distance <= MOST_MOVED * largest_move[output]
        if (rows_beyond(output, values, expected[output]) & ~explained).any():
            raise ParityError(
                f"{name}: {output} differs from PyTorch's by {distance.max():.2e}, more than 1e-5 + 1e-5 |x|, and more "
                "than rounding explains"
            )


def pytorch_call(model: CharacterModel) -> Call:
    """The PyTorch model."""

    def call(tokens: Array, state: Named) -> Named:
        logits, last = model(torch.from_numpy(tokens), tuple(map(torch.from_numpy, state.values())))
        next_state = {f"next_{part}": values.numpy() for part, values in zip(state, last, strict=True)}
        return {"logits": logits.numpy(), **next_state}

    return call


def portable_call(graph: ort.InferenceSession) -> Call:
    """The portable graph."""

    def call(tokens: Array, state: Named) -> Named:
        names = ["logits", *(f"next_{part}" for part in state)]
        return dict(zip(names, graph.run(names, {"tokens": tokens, **state}), strict=True))

    return call


def serving_call(graph: ort.InferenceSession) -> Call:
    """A serving graph that is forced to take the given characters; it shows no logits."""

    def call(tokens: Array, state: Named) -> Named:
        batch, time = tokens.shape
        # The graph reads `token`, then each character that it was forced to take but the last.
        feeds = decode_feeds(graph, tokens[:, 0], state["state_h"], np.zeros((time, batch), np.float32), Sampling())
        feeds["forced"][:-1] = tokens.T[1:]
        return {"next_state_h": graph.run(["next_state_h"], feeds)[0]}

    return call
