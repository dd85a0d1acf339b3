"""The run folder: the names of its files, and config.json. Needs no PyTorch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import RunError
from rill.train.record.files import replace_file
from rill.vocabulary import Vocabulary

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CHECKPOINT = "trainer.pt"
PREVIOUS_CHECKPOINT = "trainer.previous.pt"
METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
SUMMARY = "summary.json"
CURVES = "curves.png"
HELD_OUT = "held_out.txt"  # only where it was drawn: elsewhere it is the end of the text
LOCK = ".train.lock"

# The text itself is compared by its digest, and the weights that a run started from are in its first checkpoint.
RESUME_MAY_CHANGE = ("device", "threads", "corpus", "suffix", "encoding", "validation_corpus", "start", "recipe")


@dataclass(frozen=True)
class RunConfig:
    """The contents of config.json. `labels` is empty unless the task is tagging."""

    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    labels: tuple[str, ...] = ()

    def digest(self) -> str:
        """The SHA-256 of everything that a resumed run must have in common with the run it continues."""
        training = {name: value for name, value in self.training.to_json().items() if name not in RESUME_MAY_CHANGE}
        symbols, *others = self.vocabulary.to_json().items()
        document = json.dumps([self.model.to_json(), training, symbols[1], self.labels, *others])
        return hashlib.sha256(document.encode()).hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """The existing checkpoints, the newest first."""
    return [path for path in (folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT) if path.exists()]


def save_config(folder: Path, config: RunConfig) -> None:
    """Write config.json."""
    document: dict[str, Any] = {
        "model": config.model.to_json(),
        "training": config.training.to_json(),
        **config.vocabulary.to_json(),
    }
    if config.labels:
        document["labels"] = config.labels
    replace_file(folder / CONFIG, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def load_config(folder: Path) -> RunConfig:
    """Read and check config.json. Raises RunError."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not a run folder: no such folder; train one with rill train --out {folder}")
    path = folder / CONFIG
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: it must hold a JSON object")
    for section in ("model", "training", "vocabulary"):
        if section not in document:
            raise RunError(f"{path} lacks {section!r}")
    try:
        model = ModelConfig.from_json(document["model"])
        labels = _strings(document, "labels")
        if bool(labels) is not (model.task == "tag"):
            raise ValueError(f"'labels' are for taggers, and only for them; task is {model.task!r}")
        return RunConfig(
            model,
            TrainingConfig.from_json(document["training"]),
            Vocabulary.from_json(document, sequences=model.task == "tag"),
            labels,
        )
    except (ValueError, RecursionError) as error:  # a value may be nested too deeply for its repr
        raise RunError(f"{path}: {error}") from None


def _strings(document: dict[str, Any], key: str) -> tuple[str, ...]:
    values = document.get(key, [])
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # JSON can escape a lone surrogate, which text cannot hold
        raise ValueError(f"{key!r} has half of a surrogate pair") from None
    return tuple(values)
