"""One model of the parity matrix in all its shapes: what its graphs make, beside PyTorch, float64 and the emulation."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from rill.export.graphs.arithmetic import rounded
from rill.export.graphs.build import build_bundle
from rill.export.graphs.weights import weights_of
from rill.export.matrix.models import Configuration, Network, random_run
from rill.export.parity.choices import NEAR
from rill.export.parity.compare import TOLERANCE, Array, ParityError, decode_feeds, row_maxima, rows_beyond, session
from rill.export.parity.float64 import Float64
from rill.export.parity.reference import Call, Int8, Named, next_states, pytorch_call
from rill.export.parity.teacher_forced import portable_call
from rill.sampling import Sampling
from rill.train.nets.model import CharacterModel

CALLS = 3  # chained


@dataclass(frozen=True)
class Difference:
    """The largest |difference| of two arrays, and the largest share that one has of the tolerance: at most 1 is good.

    What is no number differs infinitely.
    """

    largest: float = 0.0
    share: float = 0.0

    @classmethod
    def of(cls, got: Array, expected: Array) -> "Difference":
        """Raises ParityError for different shapes."""
        if got.shape != expected.shape:
            raise ParityError(f"shape {got.shape}, expected {expected.shape}")
        distance = np.nan_to_num(np.abs(got - expected), nan=np.inf, posinf=np.inf)
        share = distance / (TOLERANCE + TOLERANCE * np.abs(np.nan_to_num(expected, posinf=0, neginf=0)))
        return cls(float(distance.max(initial=0)), float(share.max(initial=0)))

    @staticmethod
    def worst(differences: Iterable["Difference"]) -> "Difference":
        """The largest of either figure."""
        both = list(differences)
        return Difference(max((d.largest for d in both), default=0.0), max((d.share for d in both), default=0.0))

    def __str__(self) -> str:
        return f"{self.largest:.1e} ({self.share:.0%})"


@dataclass
class Result:
    """What the comparison of one configuration showed."""

    configuration: Configuration
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)  # by output, then by reference
    excused_steps: int = 0  # each of one row
    characters: int = 0  # greedy ones that were compared
    excused_characters: int = 0
    wrong_characters: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kind(self) -> tuple[str, str]:
        """Its row in the closing table: cell and precision."""
        return self.configuration.network.cell, self.configuration.network.precision

    def compare(self, output: str, reference: str, got: Array, expected: Array) -> None:
        """Take a difference into account."""
        by_reference = self.differences.setdefault(output, {})
        before = by_reference.get(reference, Difference())
        by_reference[reference] = Difference.worst([before, Difference.of(got, expected)])

    def worst(self, *outputs: str) -> Difference:
        """Over all references, of these outputs, or of all."""
        chosen = outputs or tuple(self.differences)
        return Difference.worst(
            difference for output in chosen for difference in self.differences.get(output, {}).values()
        )

    @property
    def failures(self) -> list[str]:
        """What is wrong; nothing if the graphs do what the model does."""
        beyond = [
            f"{output} differ from {reference}'s by {difference.largest:.1e}, {difference.share:.2f} of the tolerance"
            for output, by_reference in self.differences.items()
            for reference, difference in by_reference.items()
            if not difference.share <= 1
        ]
        wrong = [f"{self.wrong_characters} greedy characters are wrong"] if self.wrong_characters else []
        return [*self.errors, *beyond, *wrong]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        network = self.configuration.network
        return {
            "model": network.config.to_json(),
            "precision": network.precision,
            "batch": self.configuration.batch,
            "time": self.configuration.time,
            "differences": {
                output: {reference: asdict(difference) for reference, difference in by_reference.items()}
                for output, by_reference in self.differences.items()
            },
            **{name: getattr(self, name) for name in ("characters", "excused_characters", "excused_steps")},
            "failures": self.failures,
            "seconds": round(self.seconds, 3),
        }


class Text(NamedTuple):
    """What a reference wrote greedily. Row r begins with symbol r, in zero states."""

    tokens: list[Array]  # [steps + 1], each [rows]: what is read at each step, and the last character
    states: list[Named]  # [steps + 1], each [layers, rows, hidden] by name: before each step, and at the end
    logits: Array  # [steps, rows, vocab]: what each next character is chosen from


@torch.inference_mode()
def check(configurations: Sequence[Configuration], characters: int, seed: int = 0) -> list[Result]:
    """Compare the configurations, all of one network. Nothing is raised: what goes wrong is in the results."""
    rows = max(configuration.batch for configuration in configurations)
    steps = max(math.ceil(characters / rows), *(configuration.time for configuration in configurations))
    try:
        subject = _Subject(configurations[0].network, seed)
        text = subject.write(rows, steps)
    except Exception as error:  # not foreseen, too: ONNX Runtime's, PyTorch's, ours
        return [Result(configuration, errors=[in_words(error)]) for configuration in configurations]
    results = [Result(configuration) for configuration in configurations]
    for result in results:
        began = time.monotonic()
        try:
            subject.compare(result, np.random.default_rng([seed, *result.configuration[1:]]))
            subject.compare_text(result, text)
        except Exception as error:  # likewise
            result.errors.append(in_words(error))
        result.seconds = time.monotonic() - began
    return results


def in_words(error: Exception) -> str:
    """For the list of failures."""
    return f"{type(error).__name__}: {error}"


class _Subject:
    """The graphs of one network, built once, and what they are held against."""

    def __init__(self, network: Network, seed: int) -> None:
        run = random_run(network.config, seed)
        bundle = build_bundle(run, "matrix", network.precision)
        self._model, self._states, self._symbols = run.build(), bundle.states, len(bundle.vocabulary)
        self._graphs = {key: session(bundle.graphs[key]) for key in ("model", "decode", "decode_logprobs")}
        self._int8: Int8 | None = None
        if network.precision == "int8":
            self._int8 = Int8(run.model, weights_of(run))
            _round(self._model)
        parameters = {name: values.numpy() for name, values in self._model.named_parameters()}
        self._references: dict[str, Call] = {
            "PyTorch": pytorch_call(self._model),
            "float64": Float64(run.model, parameters),
        }

    def compare(self, result: Result, rng: np.random.Generator) -> None:
        """Teacher-forced, from random states, over chained calls."""
        _, batch, steps = result.configuration
        entry = {name: rng.uniform(-1, 1, zeros.shape).astype(np.float32) for name, zeros in self._zeros(batch).items()}
        texts = [rng.integers(self._symbols, size=(batch, steps + 1)) for _ in range(CALLS)]
        self._compare_calls(result, texts, entry)
        if self._int8:
            self._compare_steps(self._int8, result, texts, entry)

    def _compare_calls(self, result: Result, texts: list[Array], entry: Named) -> None:
        """Graphs and references side by side; in int8, the portable graph alone.

        texts [batch, time + 1]: what is read, and the last character that is forced.
        """
        portable = portable_call(self._graphs["model"])
        serving = [] if self._int8 else ["decode", "decode_logprobs"]
        chains = dict.fromkeys(["model", *serving, *self._references], entry)  # the states of each
        for text in texts:
            read = text[:, :-1]
            got = {"model": portable(read, chains["model"])}
            got |= {key: self._force(key, text, chains[key]) for key in serving}
            expected = {name: call(read, chains[name]) for name, call in self._references.items()}
            for name, right in expected.items():
                result.compare("logits", name, got["model"]["logits"], right["logits"])
                for key, outputs in got.items():
                    for state, values in next_states(outputs).items():
                        what = "states" if key == "model" else "serving states"
                        result.compare(what, name, values, right[f"next_{state}"])
                    if "logprobs" in outputs:
                        of_ids = _log_probabilities(right["logits"], outputs["ids"])
                        result.compare("logprobs", name, outputs["logprobs"], of_ids)
            chains = {name: next_states(outputs) for name, outputs in (got | expected).items()}

    def _compare_steps(self, reference: Int8, result: Result, texts: list[Array], entry: Named) -> None:
        """Every step of the serving graphs from the graph's own state. A whole call has the same bits as its steps."""
        states = entry
        for text in texts:
            whole = [self._force(key, text, states) for key in ("decode", "decode_logprobs")]
            chain, outputs = [states], []
            for step in range(text.shape[1] - 1):
                outputs.append(self._force("decode_logprobs", text[:, step : step + 2], chain[-1]))
                chain.append(next_states(outputs[-1]))
            states = chain[-1]
            logprobs, ids = (np.concatenate([each[name] for each in outputs], axis=1) for name in ("logprobs", "ids"))
            equal = [(next_states(each)[name] == values).all() for each in whole for name, values in states.items()]
            if not all(equal) or (whole[-1]["logprobs"] != logprobs).any():
                raise ParityError(f"a call of {len(outputs)} steps differs from as many calls of one")
            logits = self._compare_states(reference, result, text[:, :-1], chain)
            result.compare("logprobs", "emulation", logprobs, _log_probabilities(logits, ids))

    def _compare_states(self, reference: Int8, result: Result, read: Array, chain: list[Named]) -> Array:
        """A graph's states, before each step [batch, time] and at the end; the reference's logits of the steps."""
        # All steps at once: a row for each step and row of the batch.
        tokens, before, after = read.T.ravel(), _side_by_side(chain[:-1]), _side_by_side(chain[1:])
        expected, moves = reference.step(tokens, before, after), reference.moves(tokens[:, None], before)
        for name, values in after.items():
            right = expected[f"next_{name}"]
            excused = rows_beyond(name, values, right)
            excused &= row_maxima(name, np.abs(values - right)) <= moves[f"next_{name}"]
            result.excused_steps += int(excused.sum())
            result.compare("serving states", "emulation", values[:, ~excused], right[:, ~excused])
        return expected["logits"].reshape(*read.T.shape, self._symbols).transpose(1, 0, 2)

    def write(self, rows: int, steps: int) -> Text:
        """The greedy text of the reference: PyTorch's own, step by step.

        In int8 the graph's, step by step, with the logits of the emulation from the same states.
        """
        tokens, states, logits = [np.arange(rows) % self._symbols], [self._zeros(rows)], list[Array]()
        for _ in range(steps):
            if self._int8:
                outputs = self._write_on(tokens[-1], states[-1], 1)
                tokens.append(outputs["tokens"][0])
            else:
                outputs = self._references["PyTorch"](tokens[-1][:, None], states[-1])
                logits.append(outputs["logits"][:, 0])
                tokens.append(logits[-1].argmax(axis=1))
            states.append(next_states(outputs))
        if not self._int8:
            return Text(tokens, states, np.stack(logits))
        before, after = _side_by_side(states[:-1]), _side_by_side(states[1:])
        seen = self._int8.step(np.concatenate(tokens[:-1]), before, after)["logits"]
        return Text(tokens, states, seen.reshape(steps, rows, self._symbols))

    def compare_text(self, result: Result, text: Text) -> None:
        """Free-running: the graph's greedy text in calls of the configuration's batch and time."""
        _, batch, steps = result.configuration
        for first in range(0, text.logits.shape[1], batch):
            self._compare_rows(result, text, slice(first, first + batch), steps)

    def _compare_rows(self, result: Result, text: Text, rows: slice, steps: int) -> None:
        right = text.logits[:, rows].argmax(axis=2)  # [all steps, batch]
        token, states = text.tokens[0][rows], {name: values[:, rows] for name, values in text.states[0].items()}
        for start in range(0, len(right), steps):
            chosen = right[start : start + steps]
            outputs = self._write_on(token, states, len(chosen))
            got, states = outputs["tokens"], next_states(outputs)
            token = got[-1].copy()
            result.characters += chosen.size
            for row in np.flatnonzero((got != chosen).any(axis=0)):
                step = int((got[:, row] != chosen[:, row]).argmax())
                logits = text.logits[start + step, rows][row]
                if logits.max() - logits[got[step, row]] < NEAR:
                    result.excused_characters += 1
                else:
                    result.wrong_characters += 1
                # The row goes on from where the reference is.
                end = start + len(chosen)
                result.characters -= len(chosen) - step - 1
                token[row] = text.tokens[end][rows][row]
                for name, values in states.items():
                    values[:, row] = text.states[end][name][:, rows][:, row]

    def _zeros(self, batch: int) -> Named:
        """The states of texts about to begin."""
        return {
            name: np.zeros([batch if axis == "batch" else int(axis) for axis in shape], np.float32)
            for name, shape in self._states
        }

    def _write_on(self, token: Array, states: Named, steps: int) -> Named:
        """The outputs of the serving graph that chooses greedily, `tokens` [steps, batch] among them."""
        u = np.zeros((steps, len(token)), np.float32)
        return self._run("decode", decode_feeds(self._graphs["decode"], token, states, u, Sampling(temperature=0)))

    def _force(self, key: str, text: Array, states: Named) -> Named:
        """The outputs of a serving graph that reads text [batch, time + 1], but for the last character.

        Where it has log-probabilities, `logprobs` [batch, time, n] are those of the next character and of the most
        probable ones, and `ids`, of the same shape, say which those are.
        """
        u = np.zeros((text.shape[1] - 1, len(text)), np.float32)
        feeds = decode_feeds(self._graphs[key], text[:, 0], states, u, Sampling())
        feeds["forced"] = np.ascontiguousarray(text.T[1:])
        outputs = self._run(key, feeds)
        if (outputs["tokens"] != feeds["forced"]).any():
            raise ParityError(f"{key} does not take the characters that it is forced to take")
        if "logprobs" in outputs:
            ids = np.concatenate([outputs["tokens"][..., None], outputs["top_tokens"]], axis=2)
            logprobs = np.concatenate([outputs["logprobs"][..., None], outputs["top_logprobs"]], axis=2)
            outputs |= {"ids": ids.transpose(1, 0, 2), "logprobs": logprobs.transpose(1, 0, 2)}
        return outputs

    def _run(self, key: str, feeds: Named) -> Named:
        names = [value.name for value in self._graphs[key].get_outputs()]
        return dict(zip(names, self._graphs[key].run(names, feeds), strict=True))


def _round(model: CharacterModel) -> None:
    """Give a model the weights that its int8 graph has."""
    for name, weight in model.named_parameters():
        weight.copy_(torch.from_numpy(rounded(name, weight.double().numpy())))


def _side_by_side(states: list[Named]) -> Named:
    """States of several steps as those of one batch."""
    return {name: np.concatenate([each[name] for each in states], axis=1) for name in states[0]}


def _log_probabilities(logits: Array, ids: Array) -> Array:
    """ln softmax of logits (..., vocab), of the symbols `ids` (..., n): float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    of_ids: Array = np.take_along_axis(normalized, ids, axis=-1)
    return of_ids
