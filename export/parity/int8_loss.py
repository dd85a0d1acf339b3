"""The quality that int8 costs: bits per character on the validation text, compared with fp32.

The text is the one that training held out, if the corpus still exists unchanged; otherwise one that the fp32 model
generates, on which the difference estimates the divergence between the two models. Both models are measured by their
serving graphs, `decode-logprobs.onnx`, which read the text as forced characters.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch

from rill.bundle import Bundle
from rill.export.parity.compare import Array, decode_feeds, session, zero_states
from rill.sampling import Sampling
from rill.train.errors import TrainError
from rill.train.record.run import Run
from rill.train.text.cutting import UNSEEN, cut_text
from rill.train.text.files import is_stream
from rill.train.text.lines import LineTexts
from rill.train.text.split import known_characters, read_texts
from rill.train.text.windows import IGNORED
from rill.vocabulary import Vocabulary

CHARACTERS = 65_536  # of the text, at most
TRACKS = 64  # parts of the text that are read in parallel, at most
SHORTEST = 256  # characters of a track: a shorter one would measure the cold start
MAX_LOSS = 0.01  # bits per character
CALL = 64  # steps of a call
LONGEST_LINE = 256  # symbols of a line that are measured


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
    found, text = _validation(run), "validation text"
    ids, counted = found if found else (None, None)
    if ids is None or counted is None:
        ids, text = _generate_text(graphs[1], fp32), "a text by the fp32 model: there is no validation text"
        counted = np.ones_like(ids[:, 1:], bool)
    bits, bits_fp32 = (_bits_per_character(graph, bundle, ids, counted) for graph in graphs)
    return Loss(bits, bits_fp32, int(counted.sum()), text)


def _validation(run: Run) -> tuple[Array, Array] | None:
    """The held-out text as ids [tracks, time], and which but the first of each track count [tracks, time - 1].

    None if the corpus is missing or changed, or nothing was held out. Of a run on lines, a track is a line, from its
    start symbol to its end symbol.

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
    if run.training.lines:
        return _lines(texts.held_out, run.vocabulary)
    if not run.vocabulary.are_characters:
        cut = cut_text(texts.held_out, run.vocabulary.tokenizer, run.vocabulary.text_symbols)
        encoded = cut.encode(run.vocabulary)
        return _tracks(encoded[encoded != UNSEEN][: CHARACTERS + TRACKS].astype(np.int64))
    return _tracks(
        np.array(run.vocabulary.encode(known_characters(texts.held_out, run.vocabulary)[: CHARACTERS + TRACKS]))
    )


def _tracks(ids: Array) -> tuple[Array, Array] | None:
    """A text of ids (N,) as tracks of equal length, all of which counts."""
    if len(ids) < 2:
        return None
    tracks = max(1, min(TRACKS, len(ids) // SHORTEST))
    rows = ids[: len(ids) // tracks * tracks].reshape(tracks, -1)
    return rows, np.ones_like(rows[:, 1:], bool)


def _lines(text: str, vocabulary: Vocabulary) -> tuple[Array, Array] | None:
    """Drawn lines of `text`, of CHARACTERS symbols, the longest cut off; what follows their ends does not count."""
    ids = cut_text(text, vocabulary.tokenizer, vocabulary.text_symbols, lines=True).encode(vocabulary)
    lines = LineTexts(ids, vocabulary)
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(len(lines)))
    drawn = drawn[: int((lines.lengths[drawn].clamp(max=LONGEST_LINE).cumsum(0) <= CHARACTERS).sum())]
    if not len(drawn):
        return None
    inputs, targets = (each[:, :LONGEST_LINE].numpy() for each in lines.batch(drawn))
    counted = targets != IGNORED
    return np.concatenate([inputs[:, :1], np.where(counted, targets, vocabulary.end_ids[0])], axis=1), counted


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


def _bits_per_character(graph: ort.InferenceSession, bundle: Bundle, ids: Array, counted: Array) -> float:
    """Bits per character of those ids [tracks, time], but the first of each track, that are `counted` [tracks, time -
    1]; tracks begin from the zero state.
    """
    by_time = np.ascontiguousarray(ids.T)
    states, total = zero_states(bundle, len(ids)), 0.0
    for start in range(0, len(by_time) - 1, CALL):
        expected = by_time[start + 1 : start + 1 + CALL]
        feeds = decode_feeds(graph, by_time[start], states, np.zeros(expected.shape, np.float32), Sampling())
        feeds["forced"] = expected
        logprobs, *after = graph.run(["logprobs", *(f"next_{name}" for name in states)], feeds)
        states, total = (
            dict(zip(states, after, strict=True)),
            total + float(logprobs.sum(where=counted.T[start : start + CALL], dtype=np.float64)),
        )
    return -total / int(counted.sum()) / math.log(2)
