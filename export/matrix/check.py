"""One network of the parity matrix in all its shapes: its graphs against PyTorch, float64 NumPy and the emulation."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from rill.export.errors import ParityError
from rill.export.graphs.build import build_bundle
from rill.export.graphs.weights import weights_of
from rill.export.matrix.models import Configuration, Network, random_run
from rill.export.parity.choices import NEAR
from rill.export.parity.compare import (
    TOLERANCE,
    Array,
    Named,
    batch_axis,
    decode_feeds,
    random_states,
    row_maxima,
    rows_beyond,
    run_graph,
    session,
    side_by_side,
    take_rows,
    zero_states,
)
from rill.export.parity.float64 import Float64
from rill.export.parity.reference import Call, Int8, next_states, pytorch_call, round_weights
from rill.export.parity.teacher_forced import portable_call
from rill.sampling import Sampling

CALLS = 3  # chained


@dataclass(frozen=True)
class Difference:
    """The largest |difference| of two arrays, and the largest share of the tolerance: at most 1 passes.

    NaN differs infinitely.
    """

    largest: float = 0.0
    share: float = 0.0

    @classmethod
    def of(cls, got: Array, expected: Array) -> "Difference":
        """Compare two arrays. Raises ParityError for different shapes."""
        if got.shape != expected.shape:
            raise ParityError(f"shape {got.shape}, expected {expected.shape}")
        distance = np.nan_to_num(np.abs(got - expected), nan=np.inf, posinf=np.inf)
        share = distance / (TOLERANCE + TOLERANCE * np.abs(np.nan_to_num(expected, posinf=0, neginf=0)))
        return cls(float(distance.max(initial=0)), float(share.max(initial=0)))

    @staticmethod
    def worst(differences: Iterable["Difference"]) -> "Difference":
        """The larger of either figure over all differences."""
        both = list(differences)
        return Difference(max((d.largest for d in both), default=0.0), max((d.share for d in both), default=0.0))

    def __str__(self) -> str:
        return f"{self.largest:.1e} ({self.share:.0%})"


@dataclass
class Result:
    """The result of comparing one configuration."""

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
        """The row of the closing table: cell and precision."""
        return self.configuration.network.cell, self.configuration.network.precision

    def compare(self, output: str, reference: str, got: Array, expected: Array) -> None:
        """Add a difference to the record."""
        by_reference = self.differences.setdefault(output, {})
        before = by_reference.get(reference, Difference())
        by_reference[reference] = Difference.worst([before, Difference.of(got, expected)])

    def worst(self, *outputs: str) -> Difference:
        """The worst difference over all references, of these outputs, or of all."""
        chosen = outputs or tuple(self.differences)
        return Difference.worst(
            difference for output in chosen for difference in self.differences.get(output, {}).values()
        )

    @property
    def failures(self) -> list[str]:
        """Everything that is wrong; empty if the graphs match the model."""
        beyond = [
            f"{output} differ from {reference}'s by {difference.largest:.1e}, {difference.share:.2f} of the tolerance"
            for output, by_reference in self.differences.items()
            for reference, difference in by_reference.items()
            if not difference.share <= 1
        ]
        wrong = [f"{self.wrong_characters} greedy characters are wrong"] if self.wrong_characters else []
        return [*self.errors, *beyond, *wrong]

    def to_json(self) -> dict[str, Any]:
        """The result as --json writes it."""
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


class NetworkJob(NamedTuple):
    """A network and its configurations: they share its graphs."""

    network: Network
    configurations: Sequence[Configuration]

    def __str__(self) -> str:
        return str(self.network)


class Text(NamedTuple):
    """A greedy text of a reference. Row r begins with symbol r, in zero states."""

    tokens: list[Array]  # [steps + 1], each [rows]: the symbol read at each step, and the last character
    states: list[Named]  # [steps + 1], each [layers, rows, hidden] by name: before each step, and at the end
    logits: Array  # [steps, rows, vocab]: each next character is chosen from these


@torch.inference_mode()
def check(job: NetworkJob, on_progress: Callable[[str], object], characters: int, seed: int = 0) -> list[Result]:
    """Compare the configurations of one network, each over at least `characters`. Raises nothing: see `errors`."""
    configurations = job.configurations
    on_progress("building the graphs")
    rows = max(configuration.batch for configuration in configurations)
    steps = max(math.ceil(characters / rows), *(configuration.time for configuration in configurations))
    try:
        subject = _Subject(job.network, seed)
        text = subject.generate(rows, steps)
    except Exception as error:  # unforeseen ones too: of ONNX Runtime, PyTorch or ours
        return [Result(configuration, errors=[in_words(error)]) for configuration in configurations]
    results = [Result(configuration) for configuration in configurations]
    for result in results:
        started = time.monotonic()
        on_progress(f"batch {result.configuration.batch}, time {result.configuration.time}")
        try:
            subject.compare(result, np.random.default_rng([seed, *result.configuration[1:]]))
            subject.compare_text(result, text)
        except Exception as error:  # likewise
            result.errors.append(in_words(error))
        result.seconds = time.monotonic() - started
    return results


def in_words(error: Exception) -> str:
    """The error as an entry of the list of failures."""
    return f"{type(error).__name__}: {error}"


class _Subject:
    """The graphs of one network, built once, and their references."""

    def __init__(self, network: Network, seed: int) -> None:
        run = random_run(network.config, seed)
        bundle = build_bundle(run, "matrix", network.precision)
        self._model, self._bundle, self._symbols = run.build(), bundle, len(bundle.vocabulary)
        self._graphs = {key: session(bundle.graphs[key], bundle) for key in ("model", "decode", "decode_logprobs")}
        self._int8: Int8 | None = None
        if network.precision == "int8":
            self._int8 = Int8(run.model, weights_of(run))
            round_weights(self._model)
        parameters = {name: values.numpy() for name, values in self._model.named_parameters()}
        self._references: dict[str, Call] = {
            "PyTorch": pytorch_call(self._model),
            "float64": Float64(run.model, parameters),
        }

    def compare(self, result: Result, rng: np.random.Generator) -> None:
        """Compare logits and states over chained calls from random states, teacher-forced."""
        _, batch, steps = result.configuration
        entry = random_states(self._bundle, batch, rng)
        texts = [rng.integers(self._symbols, size=(batch, steps + 1)) for _ in range(CALLS)]
        self._compare_calls(result, texts, entry)
        if self._int8:
            self._compare_steps(self._int8, result, texts, entry)

    def _compare_calls(self, result: Result, texts: list[Array], entry: Named) -> None:
        """Compare graphs and references, each with states of its own; in int8, the portable graph alone.

        `texts` are [batch, time + 1]: the characters read, and the last one that is forced.
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
        """Compare every step of the serving graphs from their own states; a call must have the bits of its steps."""
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
        """Compare a graph's states before each step [batch, time] and at the end; returns the reference's logits."""
        # All steps at once: a row for each step and row of the batch.
        tokens, before, after = read.T.ravel(), side_by_side(chain[:-1]), side_by_side(chain[1:])
        expected = reference.step(tokens, before, after)
        bounds = reference.rounding_bounds(tokens[:, None], before)
        for name, values in after.items():
            right = expected[f"next_{name}"]
            excused = rows_beyond(name, values, right)
            excused &= row_maxima(name, np.abs(values - right)) <= bounds[f"next_{name}"]
            result.excused_steps += int(excused.sum())
            result.compare(
                "serving states", "emulation", *(take_rows({name: each}, ~excused)[name] for each in (values, right))
            )
        return expected["logits"].reshape(*read.T.shape, self._symbols).transpose(1, 0, 2)

    def generate(self, rows: int, steps: int) -> Text:
        """Generate the reference's greedy text of `steps` characters in `rows` rows: PyTorch's own.

        In int8 it is the graph's, with the logits of the emulation from the same states.
        """
        tokens, states, logits = [np.arange(rows) % self._symbols], [zero_states(self._bundle, rows)], list[Array]()
        for _ in range(steps):
            if self._int8:
                outputs = self._generate_greedily(tokens[-1], states[-1], 1)
                tokens.append(outputs["tokens"][0])
            else:
                outputs = self._references["PyTorch"](tokens[-1][:, None], states[-1])
                logits.append(outputs["logits"][:, 0])
                tokens.append(logits[-1].argmax(axis=1))
            states.append(next_states(outputs))
        if not self._int8:
            return Text(tokens, states, np.stack(logits))
        before, after = side_by_side(states[:-1]), side_by_side(states[1:])
        seen = self._int8.step(np.concatenate(tokens[:-1]), before, after)["logits"]
        return Text(tokens, states, seen.reshape(steps, rows, self._symbols))

    def compare_text(self, result: Result, text: Text) -> None:
        """Compare the graph's greedy text, in calls of the configuration's batch and time."""
        _, batch, steps = result.configuration
        for first in range(0, text.logits.shape[1], batch):
            self._compare_rows(result, text, slice(first, first + batch), steps)

    def _compare_rows(self, result: Result, text: Text, rows: slice, steps: int) -> None:
        right = text.logits[:, rows].argmax(axis=2)  # [all steps, batch]
        token, states = text.tokens[0][rows], take_rows(text.states[0], rows)
        for start in range(0, len(right), steps):
            chosen = right[start : start + steps]
            outputs = self._generate_greedily(token, states, len(chosen))
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
                # The row continues from the reference's state.
                end = start + len(chosen)
                result.characters -= len(chosen) - step - 1
                token[row] = text.tokens[end][rows][row]
                for name, values in take_rows(text.states[end], rows).items():
                    index = (row,) if batch_axis(name) == 0 else (slice(None), row)
                    states[name][index] = values[index]

    def _generate_greedily(self, token: Array, states: Named, steps: int) -> Named:
        """Run the serving graph greedily; its outputs include `tokens` [steps, batch]."""
        graph, u = self._graphs["decode"], np.zeros((steps, len(token)), np.float32)
        return run_graph(graph, decode_feeds(graph, token, states, u, Sampling(temperature=0)))

    def _force(self, key: str, text: Array, states: Named) -> Named:
        """Run a serving graph over all but the last character of `text` [batch, time + 1], which is forced.

        If it has log-probabilities, `logprobs` [batch, time, n] are those of the next character and of the most
        probable ones, and `ids`, of the same shape, are their symbols. Raises ParityError if a character differs.
        """
        u = np.zeros((text.shape[1] - 1, len(text)), np.float32)
        feeds = decode_feeds(self._graphs[key], text[:, 0], states, u, Sampling())
        feeds["forced"] = np.ascontiguousarray(text.T[1:])
        outputs = run_graph(self._graphs[key], feeds)
        if (outputs["tokens"] != feeds["forced"]).any():
            raise ParityError(f"{key} does not take the forced characters")
        if "logprobs" in outputs:
            ids = np.concatenate([outputs["tokens"][..., None], outputs["top_tokens"]], axis=2)
            logprobs = np.concatenate([outputs["logprobs"][..., None], outputs["top_logprobs"]], axis=2)
            outputs |= {"ids": ids.transpose(1, 0, 2), "logprobs": logprobs.transpose(1, 0, 2)}
        return outputs


def _log_probabilities(logits: Array, ids: Array) -> Array:
    """ln softmax of `logits` (..., vocab) at the symbols `ids` (..., n): float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    of_ids: Array = np.take_along_axis(normalized, ids, axis=-1)
    return of_ids
