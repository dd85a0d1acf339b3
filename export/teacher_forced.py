"""Teacher-forced comparison: logits and states of a graph and of PyTorch after the same text.

A trained network can be locally unstable: from some states it multiplies a rounding error a thousandfold within a few
steps, whoever computes it (PyTorch's float32 strays as far from its own float64 there). So where a row differs by more
than the tolerance, the call is walked through: the graph's state after each number of steps must be one step of
PyTorch's from the graph's state before. Then the row is excused, and counted: it follows the network, along another
rounding.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from export.compare import Array, ParityError, decode_feeds, rows_beyond
from export.sampling import Sampling
from train.model import CharacterModel

# From tokens [batch, time] and state [layers, batch, hidden] to named outputs, "next_state_h" among them.
Call = Callable[[Array, Array], dict[str, Array]]


class Compared(NamedTuple):
    """The largest differences of the rows that were not excused, and how many rows there were."""

    worst: dict[str, float]  # by output
    rows: int
    excused: int


def teacher_forced(name: str, graph: Call, plain: Call, model: CharacterModel, rng: np.random.Generator) -> Compared:
    """Compare the two over chained calls. Raises ParityError for a row beyond the tolerance that has no excuse."""
    worst: dict[str, float] = {}
    rows = excused = 0
    for entry, texts in _chains(model, rng):
        state = plain_state = entry
        for tokens in texts:
            got, expected = graph(tokens, state), plain(tokens, plain_state)
            beyond = np.zeros(len(tokens), bool)
            for output, values in got.items():
                beyond |= rows_beyond(output, values, expected[output])
            if beyond.any():
                _walk(name, graph, plain, tokens, state)
            for output, values in got.items():
                distances = np.abs(values - expected[output])[_of_rows(output, ~beyond)]
                worst[output] = max(worst.get(output, 0.0), float(distances.max(initial=0)))
            rows, excused = rows + len(tokens), excused + int(beyond.sum())
            state = got["next_state_h"]
            plain_state = np.where(beyond[:, None], state, expected["next_state_h"])
    return Compared(worst, rows, excused)


def _chains(model: CharacterModel, rng: np.random.Generator) -> Iterator[tuple[Array, list[Array]]]:
    """Random states in (-1, 1) [layers, batch, hidden], each with the texts [batch, time] of its chained calls."""
    config, symbols = model.config, model.vocabulary_size
    for batch in (1, *rng.integers(2, 20, size=3)):
        state = rng.uniform(-1, 1, (config.layers, batch, config.hidden)).astype(np.float32)
        yield state, [rng.integers(symbols, size=(batch, time)) for time in (1, *rng.integers(1, 40, size=4))]


def _of_rows(output: str, rows: Array) -> Any:
    """The index of some rows: states have layers first."""
    return (slice(None), rows) if output == "next_state_h" else rows


def _walk(name: str, graph: Call, plain: Call, tokens: Array, entry: Array) -> None:
    """Show that a call is a chain of PyTorch's steps, for all its rows. Raises ParityError at a step that is not.

    The graph is called for 1, 2, 3, ... steps, in the same batch: what it does wrong over time or between rows shows.
    """
    before = entry
    for time in range(1, tokens.shape[1] + 1):
        got, expected = graph(tokens[:, :time], entry), plain(tokens[:, time - 1 : time], before)
        for output, values in got.items():
            last = values if output == "next_state_h" else values[:, -1:]
            if rows_beyond(output, last, expected[output]).any():
                distance = np.abs(last - expected[output]).max()
                raise ParityError(
                    f"{name}: {output} differs from PyTorch's by {distance:.2e} in one step, more than 1e-5 + 1e-5 |x|"
                )
        before = got["next_state_h"]


def pytorch_call(model: CharacterModel) -> Call:
    """The PyTorch model."""

    def call(tokens: Array, state: Array) -> dict[str, Array]:
        logits, (next_state,) = model(torch.from_numpy(tokens), (torch.from_numpy(state),))
        return {"logits": logits.numpy(), "next_state_h": next_state.numpy()}

    return call


def portable_call(graph: ort.InferenceSession) -> Call:
    """The portable graph."""

    def call(tokens: Array, state: Array) -> dict[str, Array]:
        names = ["logits", "next_state_h"]
        return dict(zip(names, graph.run(names, {"tokens": tokens, "state_h": state}), strict=True))

    return call


def serving_call(graph: ort.InferenceSession) -> Call:
    """A serving graph that is forced to take the given characters; it shows no logits."""

    def call(tokens: Array, state: Array) -> dict[str, Array]:
        batch, time = tokens.shape
        # The graph reads `token`, then each character that it was forced to take but the last.
        feeds = decode_feeds(graph, tokens[:, 0], state, np.zeros((time, batch), np.float32), Sampling())
        feeds["forced"][:-1] = tokens.T[1:]
        return {"next_state_h": graph.run(["next_state_h"], feeds)[0]}

    return call
