"""Teacher-forced comparison: logits and states of a graph and of PyTorch after the same text.

A trained network can be locally unstable: from some states it amplifies a rounding error a thousandfold within a few
steps, in any implementation (PyTorch's float32 strays equally far from its own float64 there). So a row that differs
by more than the tolerance is examined again from the state in which the graph began; if it follows the network along
another rounding, it is excused and counted:

- The call is walked through: the graph's state after each number of steps must be one step of PyTorch from the graph's
  state before it (int8 graphs are compared in this way only).
- In a bidirectional model no state is one step from another, because each layer reads the outputs of the layer below
  for the whole text: there the whole call is taken as one step.

A step, too, must be within the tolerance, or differ by no more than a few times the change of PyTorch's own result when
each weight changes by a rounding: sharply trained models have logits that are small differences of large numbers.
In ONNX Runtime's own LSTM, of the portable graph, each gate may also be off by a rounding of 1, however small it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from rill.bundle import Bundle
from rill.export.errors import ParityError
from rill.export.parity.compare import (
    Array,
    Named,
    decode_feeds,
    random_states,
    random_text,
    row_maxima,
    rows_beyond,
    run_graph,
)
from rill.export.parity.reference import Call, PyTorch, Reference, next_states, pytorch_call
from rill.sampling import Sampling
from rill.train.nets.model import CharacterModel


class Compared(NamedTuple):
    """The largest differences of the rows that were not excused, and the numbers of rows."""

    worst: dict[str, float]  # by output
    rows: int
    excused: int

    @property
    def worst_state(self) -> float:
        """The largest difference of all states."""
        return max(value for output, value in self.worst.items() if output.startswith("next_state_"))

    def plus(self, worst: dict[str, float], rows: int, excused: int) -> "Compared":
        """These rows and further ones."""
        both = {output: max(value, self.worst.get(output, 0.0)) for output, value in worst.items()}
        return Compared(both, self.rows + rows, self.excused + excused)


def teacher_forced(
    name: str,
    graph: Call,
    model: CharacterModel,
    bundle: Bundle,
    rng: np.random.Generator,
    inexact_gates: bool = False,
) -> Compared:
    """Compare a graph and PyTorch over chained calls. Raises ParityError for a row that differs and is not excused.

    `inexact_gates` says that the graph's gates have an absolute error: see PyTorch.
    """
    plain, reference = pytorch_call(model), PyTorch(model, inexact_gates)
    total = Compared({}, 0, 0)
    for entry, texts in _chains(bundle, rng):
        states = plain_states = entry
        for tokens in texts:
            got, expected = graph(tokens, states), plain(tokens, plain_states)
            beyond, worst = _distances(got, expected)
            if beyond.any() and model.config.bidirectional:
                _excuse(name, got, plain(tokens, states), reference, tokens, states)
            elif beyond.any():
                _walk(name, graph, reference, tokens, states)
            total = total.plus(worst, len(tokens), int(beyond.sum()))
            states, plain_states = next_states(got), next_states(expected)
            plain_states = {part: np.where(beyond[:, None], states[part], plain_states[part]) for part in states}
    return total


def step_by_step(name: str, graph: Call, reference: Reference, bundle: Bundle, rng: np.random.Generator) -> Compared:
    """Compare every step of chained calls with the reference's step from the same state. Raises ParityError.

    A call of several steps must have the same bits as the single steps.
    """
    total = Compared({}, 0, 0)
    for entry, texts in _chains(bundle, rng):
        states = entry
        for tokens in texts:
            whole = graph(tokens, states)
            for read in tokens.T:
                got = graph(read[:, None], states)
                expected = reference.step(read, states, next_states(got))
                beyond, worst = _distances(got, expected)
                if beyond.any():
                    _excuse(name, got, expected, reference, read[:, None], states)
                total = total.plus(worst, len(read), int(beyond.sum()))
                states = next_states(got)
            if any((whole[output] != values).any() for output, values in got.items()):
                raise ParityError(f"{name}: a call of {tokens.shape[1]} steps differs from as many calls of one")
    return total


def _chains(bundle: Bundle, rng: np.random.Generator) -> Iterator[tuple[Named, list[Array]]]:
    """Generate random states in (-1, 1) by name, each with the texts [batch, time] of its chained calls."""
    for batch in (1, *rng.integers(2, 20, size=3)):
        states = random_states(bundle, int(batch), rng)
        yield states, [random_text(bundle, (batch, time), rng) for time in (1, *rng.integers(1, 40, size=4))]


def _distances(got: Named, expected: Named) -> tuple[Array, dict[str, float]]:
    """Which rows differ [batch], and the largest distance of the others by output."""
    beyond = np.any([rows_beyond(output, values, expected[output]) for output, values in got.items()], axis=0)
    worst = {}
    for output, values in got.items():
        worst[output] = float(row_maxima(output, np.abs(values - expected[output]))[~beyond].max(initial=0))
    return beyond, worst


def _walk(name: str, graph: Call, reference: Reference, tokens: Array, entry: Named) -> None:
    """Check that a call is a chain of the reference's steps, for all rows. Raises ParityError at a step that is not.

    The graph is called for 1, 2, 3, … steps with the same batch, so errors over time or between rows show.
    """
    before = entry
    for time in range(1, tokens.shape[1] + 1):
        outputs = graph(tokens[:, :time], entry)
        got = {output: values[:, -1:] if output == "logits" else values for output, values in outputs.items()}
        read = tokens[:, time - 1]
        expected = reference.step(read, before, next_states(got))
        if _distances(got, expected)[0].any():
            _excuse(name, got, expected, reference, read[:, None], before)
        before = next_states(got)


def _excuse(name: str, got: Named, expected: Named, reference: Reference, tokens: Array, before: Named) -> None:
    """Check that rows differ by no more than rounding explains. Raises ParityError."""
    bounds = reference.rounding_bounds(tokens, before)
    for output, values in got.items():
        distances = row_maxima(output, np.abs(values - expected[output]))
        if (rows_beyond(output, values, expected[output]) & ~(distances <= bounds[output])).any():
            raise ParityError(
                f"{name}: {output} differs from {type(reference).__name__}'s by {distances.max():.2e} from the same "
                "state, more than 1e-5 + 1e-5 |x|, and more than rounding explains"
            )


def portable_call(graph: ort.InferenceSession) -> Call:
    """The portable graph, as a `Call`."""
    return lambda tokens, states: run_graph(graph, {"tokens": tokens, **states})


def serving_call(graph: ort.InferenceSession) -> Call:
    """A serving graph that is forced to take the given characters, as a `Call` without logits."""

    def call(tokens: Array, states: Named) -> Named:
        # The graph reads `token`, then each forced character but the last, which is any that ends no text.
        feeds = decode_feeds(graph, tokens[:, 0], states, np.zeros(tokens.T.shape, np.float32), Sampling())
        feeds["forced"] = np.concatenate([tokens.T[1:], tokens.T[:1]])
        return run_graph(graph, feeds, [f"next_{name}" for name in states])

    return call
