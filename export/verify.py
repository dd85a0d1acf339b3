"""Whether the exported graphs do what the PyTorch model does: run at every export, on the bytes to be written.

Three things are shown with ONNX Runtime on the CPU against plain PyTorch, both in float32; of a tagger, which has no
serving graphs, the first:

- teacher-forced (`export.teacher_forced`): logits and states from random non-zero states, over chained calls of random
  lengths and batch sizes, differ by at most 1e-5 + 1e-5 |x|;
- choices (`export.characters`): in one batch, rows with parameters, prompts and step limits of their own choose the
  same characters;
- free-running (`export.characters`): thousands of characters in a row are the same, greedy, sampled, and sampled with
  filters.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from export.bundle import FILES, Bundle
from export.characters import CHARACTERS, CHOICES, choices, free_running
from export.compare import TOLERANCE, session
from export.sampling import Sampling
from export.teacher_forced import portable_call, serving_call, teacher_forced
from train.model import CharacterModel

FILTERED = Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01)


@dataclass(frozen=True)
class Parity:
    """What was compared. Differences are the largest absolute ones, of rows that were not excused.

    `excused_rows`, of `rows`, are locally unstable; `excused_characters`, of all characters and choices, were within
    1e-4 of their boundary. A tagger has no serving graphs, hence no `decode_state_difference` and no characters.
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

    @property
    def worst_difference(self) -> float:
        """Of logits and states, in all graphs."""
        return max(self.logits_difference, self.state_difference, self.decode_state_difference or 0.0)

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        return {"onnxruntime": ort.__version__, "torch": torch.__version__, "tolerance": TOLERANCE, **asdict(self)}


def verify(bundle: Bundle, model: CharacterModel, seed: int = 0) -> Parity:
    """Compare all graphs of `bundle` with `model`. Raises ParityError, with figures, where one does not hold."""
    graphs = {key: session(graph) for key, graph in bundle.graphs.items()}
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        portable = teacher_forced("model.onnx", portable_call(graphs["model"]), model, bundle, rng)
        if not bundle.streamable:
            return Parity(portable.worst["logits"], portable.worst_state, None, portable.rows, portable.excused)
        serving = [
            teacher_forced(FILES[key], serving_call(graphs[key]), model, bundle, rng)
            for key in ("decode", "decode_filters")
        ]
        excused = [choices(graphs[key], model, bundle, rng) for key in ("decode", "decode_filters")]
        excused += [
            free_running(graphs[key], model, sampling, bundle, rng)
            for key, sampling in [
                ("decode", Sampling(temperature=0)),
                ("decode", Sampling()),
                ("decode_filters", FILTERED),
            ]
        ]
    return Parity(
        logits_difference=portable.worst["logits"],
        state_difference=portable.worst_state,
        decode_state_difference=max(compared.worst_state for compared in serving),
        rows=sum(compared.rows for compared in (portable, *serving)),
        excused_rows=sum(compared.excused for compared in (portable, *serving)),
        greedy_characters=CHARACTERS,
        sampled_characters=CHARACTERS,
        filtered_characters=CHARACTERS,
        choices=2 * CHOICES,
        excused_characters=sum(excused),
    )
