"""The quality that int8 costs: bits per character on the validation text, compared with fp32.

The text is the one that training held out, if the corpus still exists unchanged; otherwise one that the fp32 model
generates, on which the difference estimates the divergence between the two models. Both models are measured by their
serving graphs, `decode-logprobs.onnx`, which read the text as forced characters.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from rill.bundle import Bundle
from rill.export.parity.compare import Array, decode_feeds, session, zero_states
from rill.sampling import Sampling
from rill.train.errors import TrainError
from rill.train.record.run import Run
from rill.train.text.files import is_stream
from rill.train.text.split import known_characters, read_texts

CHARACTERS = 65_536  # of the text, at most
TRACKS = 64  # parts of the text that are read in parallel, at most
SHORTEST = 256  # characters of a track: a shorter one would measure the cold start
MAX_LOSS = 0.01  # bits per character
CALL = 64  # steps of a call


@dataclass(frozen=True)
class Loss:
    """Bits per character over `characters` of a text; `text` describes it."""

    bits_per_char: float
    bits_per_char_fp32: float
    characters: int
    text: str

    @property
    def loss(self) -> float:
        """The cost of int8, in bits per character."""
        return self.bits_per_char - self.bits_per_char_fp32


def measure_loss(run: Run, bundle: Bundle, fp32: Bundle) -> Loss:
    """Measure `bundle` and the `fp32` bundle of the same run."""
    graphs = [session(each.graphs["decode_logprobs"], each) for each in (bundle, fp32)]
    ids, text = _validation(run), "validation text"
    if ids is None:
        ids, text = _generate_text(graphs[1], fp32), "a text by the fp32 model: there is no validation text"
    bits, bits_fp32 = (_bits_per_character(graph, bundle, ids) for graph in graphs)
    return Loss(bits, bits_fp32, ids.size - len(ids), text)


def _validation(run: Run) -> Array | None:
    """The held-out text as ids [tracks, time]; None if the corpus is missing or changed, or nothing was held out.

    A corpus that came through a pipe is missing: what is in the pipe now is meant for another program.
    """
    if any(map(is_stream, run.training.corpus + run.training.validation_corpus)):
        return None
    try:
        texts = read_texts(run.training)
    except (TrainError, OSError):
        return None
    if texts.digest() != run.training.corpus_sha256:
        return None
    ids = np.array(run.vocabulary.encode(known_characters(texts.held_out, run.vocabulary)[: CHARACTERS + TRACKS]))
    tracks = max(1, min(TRACKS, len(ids) // SHORTEST))
    return ids[: len(ids) // tracks * tracks].reshape(tracks, -1) if len(ids) > 1 else None


def _generate_text(graph: ort.InferenceSession, bundle: Bundle) -> Array:
    """Generate a text from the model's own distribution: ids [tracks, time]."""
    tokens = np.full(TRACKS, bundle.vocabulary.start_id)
    states, generated, rng = zero_states(bundle, TRACKS), [tokens[None]], np.random.default_rng(0)
    goes_on = Sampling(logit_bias=dict.fromkeys(bundle.vocabulary.end_ids, -math.inf))
    for _ in range(CHARACTERS // TRACKS // CALL):
        feeds = decode_feeds(graph, tokens, states, rng.random((CALL, TRACKS), np.float32), goes_on)
        outputs = graph.run(["tokens", *(f"next_{name}" for name in states)], feeds)
        states, tokens = dict(zip(states, outputs[1:], strict=True)), outputs[0][-1]
        generated.append(outputs[0])
    return np.concatenate(generated).T


def _bits_per_character(graph: ort.InferenceSession, bundle: Bundle, ids: Array) -> float:
    """Bits per character of ids [tracks, time] except the first of each track; tracks begin from the zero state."""
    by_time = np.ascontiguousarray(ids.T)
    states, total = zero_states(bundle, len(ids)), 0.0
    for start in range(0, len(by_time) - 1, CALL):
        expected = by_time[start + 1 : start + 1 + CALL]
        feeds = decode_feeds(graph, by_time[start], states, np.zeros(expected.shape, np.float32), Sampling())
        feeds["forced"] = expected
        logprobs, *after = graph.run(["logprobs", *(f"next_{name}" for name in states)], feeds)
        states, total = dict(zip(states, after, strict=True)), total + float(logprobs.sum(dtype=np.float64))
    return -total / (ids.size - len(ids)) / math.log(2)
