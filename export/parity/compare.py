"""The common parts of all comparisons: running a graph, and deciding whether two results agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import Bundle
from rill.export.errors import ParityError
from rill.sampling import Sampling, window_of

TOLERANCE = 1e-5

Array = NDArray[Any]
Named = dict[str, Array]  # inputs or outputs of a graph by name


def session(graph: bytes) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_graph(graph: ort.InferenceSession, feeds: Named, names: Sequence[str] = ()) -> Named:
    """Run a graph; returns the outputs `names`, or all of them, by name."""
    names = names or [value.name for value in graph.get_outputs()]
    return dict(zip(names, graph.run(names, feeds), strict=True))


def zero_states(bundle: Bundle, batch: int) -> Named:
    """Initial states of `batch` texts, f32 [layers * directions, batch, hidden] by name."""
    return {
        name: np.zeros([batch if axis == "batch" else int(axis) for axis in shape], np.float32)
        for name, shape in bundle.states
    }


def random_states(bundle: Bundle, batch: int, rng: np.random.Generator) -> Named:
    """States of the shapes of `zero_states`, uniform in (-1, 1)."""
    zeros = zero_states(bundle, batch)
    return {name: rng.uniform(-1, 1, values.shape).astype(np.float32) for name, values in zeros.items()}


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
    return row_maxima(output, ~(np.abs(got - expected) <= TOLERANCE + TOLERANCE * np.abs(expected)))


def row_maxima(output: str, values: Array) -> Array:
    """The largest value of each row [batch]; logits are [batch, time, outputs], states [layers, batch, hidden]."""
    maxima: Array = values.max(axis=(1, 2) if output == "logits" else (0, 2))
    return maxima
