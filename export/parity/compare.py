"""What the comparisons of `rill.export.parity.verify` share: running a graph, and when two results agree."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bundle import Bundle
from rill.sampling import Sampling, window_of

TOLERANCE = 1e-5

Array = NDArray[Any]
Feeds = dict[str, Array]


class ParityError(ValueError):
    """An exported graph does not do what the PyTorch model does."""


def session(graph: bytes) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def zero_states(bundle: Bundle, batch: int) -> Feeds:
    """The states of texts about to begin, f32 [layers * directions, batch, hidden] by name."""
    return {
        name: np.zeros([batch if axis == "batch" else int(axis) for axis in shape], np.float32)
        for name, shape in bundle.states
    }


def random_states(bundle: Bundle, batch: int, rng: np.random.Generator) -> Feeds:
    """States as `zero_states` has them, uniform in (-1, 1)."""
    zeros = zero_states(bundle, batch)
    return {name: rng.uniform(-1, 1, values.shape).astype(np.float32) for name, values in zeros.items()}


def decode_feeds(graph: ort.InferenceSession, token: Array, states: Feeds, u: Array, sampling: Sampling) -> Feeds:
    """Inputs of a serving graph for rows that sample alike, none of them forced, all of them taking every step.

    `token` [batch], `states` [layers, batch, hidden] by name, `u` [time, batch].
    """
    (time, batch), shapes = u.shape, {value.name: value.shape for value in graph.get_inputs()}
    feeds: Feeds = {
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
    """Which rows differ by more than the tolerance anywhere, or are no numbers: bool [batch]."""
    if got.shape != expected.shape:
        raise ParityError(f"{output}: shape {got.shape}, expected {expected.shape}")
    return row_maxima(output, ~(np.abs(got - expected) <= TOLERANCE + TOLERANCE * np.abs(expected)))


def row_maxima(output: str, values: Array) -> Array:
    """The largest of each row's values [batch]; logits are [batch, time, outputs], states [layers, batch, hidden]."""
    maxima: Array = values.max(axis=(1, 2) if output == "logits" else (0, 2))
    return maxima
