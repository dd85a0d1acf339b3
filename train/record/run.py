"""The run folder's lasting half: config.json and model.safetensors, from which a trained model is rebuilt."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import TrainError
from rill.train.nets.model import CharacterModel
from rill.train.record.files import replace_file
from rill.vocabulary import Vocabulary

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# The text itself is compared by its digest; what a run started from is in its first checkpoint.
RESUME_MAY_CHANGE = ("device", "threads", "corpus", "validation_corpus", "start", "recipe")


class RunError(TrainError):
    """A run folder is missing, damaged or in the way; the message names the file and says what to do."""


@dataclass(frozen=True)
class Run:
    """A trained model as its run folder holds it. `weights` are f32, by PyTorch's parameter names."""

    folder: Path
    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    weights: dict[str, Tensor]

    def build(self) -> CharacterModel:
        """The model on the CPU, in eval mode, with the run's weights."""
        model = CharacterModel(self.model, len(self.vocabulary), len(self.labels))
        model.load_state_dict(self.weights)
        return model.eval()


@dataclass(frozen=True)
class RunConfig:
    """What config.json holds. `labels` is empty unless the task is tagging."""

    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    labels: tuple[str, ...] = ()

    def digest(self) -> str:
        """The SHA-256 of all that a resumed run must have in common with what it continues."""
        training = {name: value for name, value in self.training.to_json().items() if name not in RESUME_MAY_CHANGE}
        document = json.dumps([self.model.to_json(), training, self.vocabulary.symbols, self.labels])
        return hashlib.sha256(document.encode()).hexdigest()


def load_run(folder: str | Path) -> Run:
    """Read a run folder. Raises RunError for each way it can be wrong, before anything is built from it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(
            f"{folder} is not a run folder: no such folder; train one with python -m rill.train --out {folder}"
        )
    config = load_config(folder)
    weights = _load_weights(folder / WEIGHTS)
    check_weights(weights, config, folder / WEIGHTS)
    return Run(folder, config.model, config.training, config.vocabulary, config.labels, weights)


def save_config(folder: Path, config: RunConfig) -> None:
    """Write config.json."""
    document: dict[str, Any] = {
        "model": config.model.to_json(),
        "training": config.training.to_json(),
        "vocabulary": config.vocabulary.symbols,
    }
    if config.labels:
        document["labels"] = config.labels
    replace_file(folder / CONFIG, (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def load_config(folder: Path) -> RunConfig:
    """Read and check config.json. Raises RunError."""
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
            Vocabulary(_strings(document, "vocabulary"), characters=model.task == "generate"),
            labels,
        )
    except (ValueError, RecursionError) as error:  # a value may be nested too deep to be quoted
        raise RunError(f"{path}: {error}") from None


def _strings(document: dict[str, Any], key: str) -> tuple[str, ...]:
    values = document.get(key, [])
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # JSON can escape what no text can hold
        raise ValueError(f"{key!r} has half of a surrogate pair") from None
    return tuple(values)


def save_weights(folder: Path, model: CharacterModel) -> None:
    """Write model.safetensors."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.state_dict().items()}
    replace_file(folder / WEIGHTS, safetensors.torch.save(weights))


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{path.parent} has no {WEIGHTS} yet: no evaluation has been reached; continue the run with --resume"
        ) from None
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}") from None


def check_weights(weights: dict[str, Tensor], config: RunConfig, path: Path) -> None:
    """Raise RunError, which names `path`, unless `weights` are finite f32 of the shapes that `config` asks for."""
    with torch.device("meta"):  # shapes without storage
        expected = CharacterModel(config.model, len(config.vocabulary), len(config.labels)).state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise RunError(f"{path} lacks {name}, which {CONFIG} asks for")
        if name not in expected:
            raise RunError(f"{path} holds {name}, which the model of {CONFIG} does not have")
        weight, shape = weights[name], tuple(expected[name].shape)
        if tuple(weight.shape) != shape:
            raise RunError(f"{path}: {name} has shape {tuple(weight.shape)}, but {CONFIG} asks for {shape}")
        if weight.dtype != torch.float32:
            raise RunError(f"{path}: {name} is {weight.dtype}, not torch.float32")
        if not weight.isfinite().all():
            raise RunError(f"{path}: {name} holds NaN or infinite values")
