"""A peer that runs model.onnx once a character and samples in NumPy. It does not load PyTorch."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bench.peers.service import CharacterLoop, NewText, main
from rill.bundle import CONTEXT, Bundle


def portable_session(bundle: Bundle) -> ort.InferenceSession:
    """Load model.onnx as any program would: on the CPU, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(bundle.graphs["model"], options, providers=["CPUExecutionProvider"])


def zero_states(bundle: Bundle, batch: int) -> list[NDArray[Any]]:
    """Return what model.onnx begins with: for n-grams, the ids of the last symbols are a state, too."""
    return [
        np.zeros((batch, int(shape[1])), np.int64)
        if name == CONTEXT
        else np.zeros((bundle.layers, batch, bundle.hidden), np.float32)
        for name, shape in bundle.states
    ]


class StepText(CharacterLoop):
    """One stream: [1, time] tokens, softmax, inverse of the cumulative sums."""

    def __init__(self, session: ort.InferenceSession, bundle: Bundle, temperature: float) -> None:
        self._session, self._temperature, self._never = session, temperature, list(bundle.vocabulary.never_ids)
        self._names = [name for name, _ in bundle.states]
        self._outputs = ["logits", *(f"next_{name}" for name in self._names)]
        self._states = zero_states(bundle, 1)

    def step(self, tokens: list[int], u: float) -> int:
        """See CharacterLoop: one run of the graph."""
        feeds = {"tokens": np.array([tokens]), **dict(zip(self._names, self._states, strict=True))}
        logits, *self._states = self._session.run(self._outputs, feeds)
        row = logits[0, -1]
        if self._never:
            row[self._never] = -np.inf
        cumulative = np.exp((row - row.max()) / self._temperature).cumsum()
        return min(int(cumulative.searchsorted(u * cumulative[-1], side="right")), len(cumulative) - 1)


def step_texts(bundle: Bundle) -> NewText:
    """Load the bundle; returns what begins its streams."""
    session = portable_session(bundle)
    return lambda temperature: StepText(session, bundle, temperature)


if __name__ == "__main__":
    main(step_texts)
