"""A trained model and its weights, model.safetensors."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import RunError
from rill.train.nets.model import CharacterModel
from rill.train.record.files import replace_file
from rill.train.record.folder import CONFIG, WEIGHTS, RunConfig, load_config
from rill.vocabulary import Vocabulary


@dataclass(frozen=True)
class Run:
    """A trained model, as read from its run folder. `weights` are f32, by PyTorch's parameter names."""

    folder: Path
    model: ModelConfig
    training: TrainingConfig
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    weights: dict[str, Tensor]

    def build(self) -> CharacterModel:
        """Build the model on the CPU, in eval mode, with the run's weights."""
        model = CharacterModel(self.model, len(self.vocabulary), len(self.labels))
        model.load_state_dict(self.weights)
        return model.eval()


def load_run(folder: str | Path) -> Run:
    """Read a run folder. Raises RunError for each way it can be wrong, before anything is built from it."""
    folder = Path(folder)
    config = load_config(folder)
    weights = _load_weights(folder / WEIGHTS)
    check_weights(weights, config, folder / WEIGHTS)
    return Run(folder, config.model, config.training, config.vocabulary, config.labels, weights)


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
