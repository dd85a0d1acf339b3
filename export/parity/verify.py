"""Verification: at every export, the graphs about to be written are compared with the PyTorch model.

ONNX Runtime runs them on the CPU; float32 results must agree to 1e-5 + 1e-5 |x|. A tagger has no serving graphs, so
only the first comparison applies:

- teacher-forced (`rill.export.parity.teacher_forced`): logits and states from random non-zero states, over chained
  calls of random lengths and batch sizes;
- choices (`rill.export.parity.choices`): in one batch, rows with parameters, prompts and step limits of their own;
- free-running (`rill.export.parity.choices`): thousands of characters, greedy, sampled, and sampled with filters;
- log-probabilities of characters and of their alternatives;
- end symbols (`rill.export.parity.choices`): the state after one is that before it;
- texts that must match (`rill.export.parity.constrained`), with random automata.

In int8, the portable graph is compared with PyTorch with the rounded weights, and the serving graphs, step by step,
with the NumPy emulation of the same arithmetic (`rill.export.parity.emulation`). `rill.export.parity.int8_loss`
measures the cost of rounding.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from rill.bundle import CONSTRAINED_VARIANTS, DECODE, DECODE_LOGPROBS, VARIANTS, Bundle
from rill.export.graphs.weights import weights_of
from rill.export.parity.choices import CHARACTERS, CHOICES, Graph, choices, ends, free_running, log_probabilities
from rill.export.parity.compare import TOLERANCE, session
from rill.export.parity.constrained import ROWS, constrained
from rill.export.parity.reference import Int8, PyTorch, Reference, round_weights
from rill.export.parity.teacher_forced import portable_call, serving_call, step_by_step, teacher_forced
from rill.sampling import Sampling
from rill.train.record.run import Run

RUNS = (  # free-running texts, and the graphs that generate them
    ("decode", Sampling(temperature=0)),
    ("decode", Sampling()),
    ("decode_top_p", Sampling(temperature=0.9, top_p=0.95, min_p=0.01)),
    ("decode_top_k", Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01)),
)


@dataclass(frozen=True)
class Parity:
    """The result of a verification. Differences are the largest absolute ones of rows that were not excused.

    `excused_rows` of `rows` are locally unstable; `excused_characters` of all characters and choices were within 1e-4
    of their boundary. A tagger has no serving graphs, hence no `decode_state_difference` and no characters.
    """

    logits_difference: float
    state_difference: float
    decode_state_difference: float | None
    rows: int
    excused_rows: int
    greedy_characters: int = 0
    sampled_characters: int = 0
    filtered_characters: int = 0
    choices: int = 0
    excused_characters: int = 0
    logprob_difference: float | None = None

    @property
    def worst_difference(self) -> float:
        """The largest difference of logits and states in all graphs."""
        return max(self.logits_difference, self.state_difference, self.decode_state_difference or 0.0)

    def report(self) -> dict[str, Any]:
        """The result as the manifest holds it."""
        return {"onnxruntime": ort.__version__, "torch": torch.__version__, "tolerance": TOLERANCE, **asdict(self)}


def verify(bundle: Bundle, run: Run, seed: int = 0) -> Parity:
    """Compare all graphs of `bundle` with the model of `run`. Raises ParityError with figures if one differs."""
    graphs = {key: session(graph, bundle) for key, graph in bundle.graphs.items()}
    rng = np.random.default_rng(seed)
    model = run.build()
    with torch.inference_mode():
        if bundle.precision == "int8":
            round_weights(model)
        inexact_gates = run.model.cell == "lstm"  # ONNX Runtime's operator
        portable = teacher_forced("model.onnx", portable_call(graphs["model"]), model, bundle, rng, inexact_gates)
        if not bundle.streamable:
            return Parity(portable.worst["logits"], portable.worst_state, None, portable.rows, portable.excused)
        reference: Reference = PyTorch(model)
        compared = [portable]
        if bundle.precision == "int8":
            reference = Int8(run.model, weights_of(run))
        serving = {variant.key: Graph(variant.file, graphs[variant.key], bundle, reference) for variant in VARIANTS}
        for graph in serving.values():
            call = serving_call(graph.session)
            if bundle.precision == "int8":
                compared.append(step_by_step(graph.name, call, reference, bundle, rng))
            else:
                compared.append(teacher_forced(graph.name, call, model, bundle, rng))
        for graph in serving.values() if bundle.vocabulary.ends else ():
            ends(graph, rng)
        excused = [choices(graph, rng) for graph in serving.values()]
        excused += [free_running(serving[key], sampling, rng) for key, sampling in RUNS]
        logprobs = log_probabilities(serving[DECODE_LOGPROBS.key], rng)
        for variant in CONSTRAINED_VARIANTS:
            matching = Graph(variant.file, session(bundle.constrained[variant.key], bundle), bundle, reference)
            plain = serving[DECODE_LOGPROBS.key if variant.logprobs else DECODE.key]
            excused.append(constrained(matching, plain, rng))
    return Parity(
        logits_difference=portable.worst["logits"],
        state_difference=portable.worst_state,
        decode_state_difference=max(each.worst_state for each in compared[1:]),
        rows=sum(each.rows for each in compared),
        excused_rows=sum(each.excused for each in compared),
        greedy_characters=CHARACTERS,
        sampled_characters=CHARACTERS,
        filtered_characters=2 * CHARACTERS,
        choices=len(serving) * CHOICES + len(CONSTRAINED_VARIANTS) * ROWS,
        excused_characters=sum(excused),
        logprob_difference=logprobs,
    )
