"""The common parts of all comparisons: running a graph, and deciding whether two results agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import CONTEXT, NGRAMS, Bundle
from rill.export.errors import ParityError
from rill.sampling import Sampling, window_of

TOLERANCE = 1e-5

Array = NDArray[Any]
Named = dict[str, Array]  # inputs or outputs of a graph by name


class _Session(ort.InferenceSession):  # type: ignore[misc]  # it has no types
    """A session that feeds itself the n-gram tables of its bundle."""

    def __init__(self, graph: bytes, ngrams: Array | None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        super().__init__(graph, options, providers=["CPUExecutionProvider"])
        self._constants = {value.name: ngrams for value in super().get_inputs() if value.name == NGRAMS}

    def get_inputs(self) -> Any:
        """See InferenceSession; without the tables."""
        return [value for value in super().get_inputs() if value.name not in self._constants]

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """See InferenceSession."""
        return super().run(output_names, {**input_feed, **self._constants}, run_options)


def session(graph: bytes, bundle: Bundle | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread; the n-gram tables are those of `bundle`, and not among its inputs."""
    return _Session(graph, np.asarray(bundle.ngrams_values) if bundle and bundle.ngrams else None)


def run_graph(graph: ort.InferenceSession, feeds: Named, names: Sequence[str] = ()) -> Named:
    """Run a graph; returns the outputs `names`, or all of them, by name."""
    names = names or [value.name for value in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds), strict=True))


def zero_states(bundle: Bundle, batch: int) -> Named:
    """Initial states of a `batch`: f32 [layers * directions, batch, hidden]; context int64 [batch, n - 1]."""
    return {
        name: np.zeros(
            [batch if axis == "batch" else int(axis) for axis in shape], np.int64 if name == CONTEXT else np.float32
        )
        for name, shape in bundle.states
    }


def random_states(bundle: Bundle, batch: int, rng: np.random.Generator) -> Named:
    """States of the shapes of `zero_states`, uniform in (-1, 1); the context holds random symbols."""
    return {
        name: rng.integers(len(bundle.vocabulary), size=values.shape)
        if name == CONTEXT
        else rng.uniform(-1, 1, values.shape).astype(np.float32)
        for name, values in zero_states(bundle, batch).items()
    }


def random_text(bundle: Bundle, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random symbols, int64, none of which ends a text."""
    ids = np.delete(np.arange(len(bundle.vocabulary)), bundle.vocabulary.end_ids)
    drawn: Array = ids[rng.integers(len(ids), size=shape)]
    return drawn


def batch_axis(name: str) -> int:
    """The axis of the rows in a state, or in an output of the portable graph."""
    return 0 if name == "logits" or name.endswith(CONTEXT) else 1


def take_rows(states: Named, rows: Any) -> Named:
    """Some rows of a batch: an index, a slice or a mask."""
    return {name: values[rows] if batch_axis(name) == 0 else values[:, rows] for name, values in states.items()}


def side_by_side(parts: Sequence[Named]) -> Named:
    """Join states as one batch."""
    return {name: np.concatenate([part[name] for part in parts], axis=batch_axis(name)) for name in parts[0]}


def decode_feeds(graph: ort.InferenceSession, token: Array, states: Named, u: Array, sampling: Sampling) -> Named:
    """Inputs of a serving graph for rows with equal sampling parameters, none forced, all taking every step.

    `token` [batch], `states` [layers, batch, hidden] by name, `u` [time, batch].
    """
    (time, batch), shapes = u.shape, {value.name: value.shape for value in graph.get_inputs()}
    feeds: Named = {
        "token": token,
        **states,
        "forced": np.full((time, batch), -1, np.int64),
        "steps": np.full(batch, time, np.int64),
        "uniforms": u,
        "temperature": np.full(batch, sampling.temperature, np.float32),
        "top_p": np.full(batch, sampling.top_p, np.float32),
        "min_p": np.full(batch, sampling.min_p, np.float32),
        "top_k": np.full(batch, sampling.top_k, np.int64),
    }
    feeds = {name: values for name, values in feeds.items() if name in shapes}
    if "logit_bias" in shapes:
        feeds["logit_bias"] = np.zeros((batch, shapes["logit_bias"][1]), np.float32)
        for symbol, value in sampling.logit_bias.items():
            feeds["logit_bias"][:, symbol] = value
    if "window" in shapes:
        feeds["window"] = window_of(feeds["top_k"], feeds["logit_bias"].shape[1])
    return feeds


def rows_beyond(output: str, got: Array, expected: Array) -> Array:
    """Which rows differ by more than the tolerance anywhere, or contain NaN: bool [batch]. Raises ParityError."""
    if got.shape != expected.shape:
        raise ParityError(f"{output}: shape {got.shape}, expected {expected.shape}")
    if got.dtype.kind == "i":
        return row_maxima(output, got != expected)
    return row_maxima(output, ~(np.abs(got - expected) <= TOLERANCE + TOLERANCE * np.abs(expected)))


def row_maxima(output: str, values: Array) -> Array:
    """The largest value of each row [batch] of logits [batch, time, outputs] or a state."""
    axes = tuple(axis for axis in range(values.ndim) if axis != batch_axis(output))
    maxima: Array = values.max(axis=axes)
    return maxima
