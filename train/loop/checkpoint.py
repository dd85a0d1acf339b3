"""trainer.pt: everything a run needs to continue as if it had never stopped."""

import io
import math
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rill.train.config import TrainingConfig
from rill.train.errors import RunError
from rill.train.loop.optimizer import state_names
from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel
from rill.train.record.files import replace_file
from rill.train.record.folder import CHECKPOINT, PREVIOUS_CHECKPOINT, RunConfig, checkpoints
from rill.train.record.run import check_weights

FORMAT = 3


@dataclass
class Position:
    """Where a run stands after `step` optimizer steps: everything but weights and optimizer state.

    `loss_sum` is the loss, in nats, of the `loss_chars` characters read since the last line of metrics.jsonl, or since
    the beginning of the epoch. `seconds` is the time spent so far, over all resumes; `stalled` counts evaluations since
    the best one; `kept_step` is the step of model.safetensors. The two byte counts are the lengths of metrics.jsonl and
    samples.txt, which are truncated to them on resume.
    """

    step: int = 0
    state: State | None = None
    chars: int = 0
    loss_sum: float = 0.0
    loss_chars: int = 0
    seconds: float = 0.0
    seconds_of_last_line: float = 0.0
    chars_of_last_line: int = 0
    learning_rate: float = 0.0
    evaluations: int = 0
    evaluated_step: int = 0
    stalled: int = 0
    train_loss: float | None = None
    best_val_loss: float | None = None
    kept_step: int = 0
    metrics_bytes: int = 0
    samples_bytes: int = 0


def save_checkpoint(
    folder: Path, config: RunConfig, position: Position, model: CharacterModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write trainer.pt, for `torch.load(weights_only=True)`; the previous one is kept as trainer.previous.pt.

    At any moment at least one of the two is whole. Raises OSError.
    """
    device = model.linear.weight.device
    content = {
        "format": FORMAT,
        "config": config.digest(),
        "position": asdict(position),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(folder / CHECKPOINT, buffer.getvalue(), previous=folder / PREVIOUS_CHECKPOINT)


def load_checkpoint(
    folder: Path, config: RunConfig, model: CharacterModel, optimizer: torch.optim.Optimizer, zero: State | None
) -> tuple[Position, str]:
    """Load the newest good checkpoint into `model`, `optimizer` and the random generators.

    `zero` is the initial state of a run that carries its state over. Where trainer.pt is damaged or missing, the
    previous one is read, and the second value is a notice of that. Raises RunError if neither can be read, or if one
    belongs to another run.
    """
    notices = [] if (folder / CHECKPOINT).exists() else [f"{folder / CHECKPOINT} is missing"]
    for path in checkpoints(folder):
        try:
            content = _read(path, config, model, zero)
        except _DamagedError as damage:
            notices.append(f"{path} is damaged{damage}")
            continue
        position = Position(**content["position"])
        _restore(content, model, optimizer)
        notice = f"{'; '.join(notices)}; continuing from {path}, step {position.step}" if notices else ""
        return position, notice
    raise RunError(f"{'; '.join(notices)}; start again with another --out")


def _read(path: Path, config: RunConfig, model: CharacterModel, zero: State | None) -> dict[str, Any]:
    """Read a checkpoint and check every value. Raises _DamagedError, and RunError if it belongs to another run."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
            if archive.testzip() is not None:
                raise _DamagedError(": a checksum in it is wrong")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise RunError(
                f"{path} has format {content['format']}; this version of Rill reads {FORMAT}; start again with another"
                " --out"
            )
        if content["config"] != config.digest():
            raise RunError(
                f"{path} belongs to another run than {path.parent}'s config.json; start again with another --out"
            )
        position = _position(content["position"], zero, model.vocabulary_size)
        _check_weights(content["model"], config, path)
        _check_optimizer(content["optimizer"]["state"], model, config.training, position.step)
        torch.Generator().set_state(content["random"])
        return content
    except (RunError, _DamagedError):
        raise
    except Exception as error:  # torch.load raises many kinds, depending on which byte is wrong
        raise _DamagedError(f" ({type(error).__name__})") from error


def _restore(content: dict[str, Any], model: CharacterModel, optimizer: torch.optim.Optimizer) -> None:
    device = model.linear.weight.device
    position = content["position"]
    if position["state"] is not None:
        position["state"] = tuple(part.to(device) for part in position["state"])
    model.load_state_dict(content["model"])
    own = optimizer.state_dict()["param_groups"]  # the options come from config.json
    optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": own})
    torch.set_rng_state(content["random"])
    if device.type == "cuda" and content["cuda_random"] is not None:
        torch.cuda.set_rng_state(content["cuda_random"], device)


class _DamagedError(Exception):
    """A checkpoint is damaged; the message says how."""


def _position(values: dict[str, Any], zero: State | None, symbols: int) -> Position:
    """The position in a checkpoint, every value checked. Raises _DamagedError."""
    names = [field.name for field in fields(Position)]
    if sorted(values) != sorted(names):
        raise _DamagedError(": its position lacks a field, or has one too many")
    position = Position(**values)
    for field in fields(Position):
        value = values[field.name]
        if field.name == "state" or (value is None and field.default is None):
            continue
        kinds = (int,) if type(field.default) is int else (int, float)
        if type(value) not in kinds or not math.isfinite(value) or value < 0:
            raise _DamagedError(f": its position has {field.name} {value!r}")
    if max(position.kept_step, position.evaluated_step) > position.step or position.loss_chars > position.chars:
        raise _DamagedError(": its position contradicts itself")
    _check_state(position.state, zero if position.step else None, symbols)
    return position


def _check_state(state: object, expected: State | None, symbols: int) -> None:
    if expected is None:
        if state is not None:
            raise _DamagedError(": its position has a state where none is carried")
        return
    if not isinstance(state, tuple) or len(state) != len(expected):
        raise _DamagedError(f": the state of its position is not {len(expected)} tensors")
    for part, like in zip(state, expected, strict=True):
        _check_tensor(part, tuple(like.shape), "the state of its position", like.dtype)
        if not part.is_floating_point() and not ((part >= 0) & (part < symbols)).all():
            raise _DamagedError(": the context of its position holds symbols that the model does not have")


def _check_weights(weights: dict[str, Tensor], config: RunConfig, path: Path) -> None:
    try:
        check_weights(weights, config, path)
    except RunError as error:
        detail = str(error).removeprefix(str(path))
        raise _DamagedError(detail if detail.startswith(":") else f": it{detail}") from None


def _check_optimizer(
    state: dict[int, dict[str, Any]], model: CharacterModel, training: TrainingConfig, step: int
) -> None:
    """Raise _DamagedError unless `state` has, for each parameter, the tensors of the optimizer after `step` steps."""
    parameters = list(model.parameters())
    names = state_names(training)
    if set(state) != set(range(len(parameters) if step and names else 0)):
        raise _DamagedError(": its optimizer state is not that of the model's parameters")
    for index, entry in state.items():
        if set(entry) != names:
            raise _DamagedError(f": its optimizer state is not that of {training.optimizer}")
        for name, value in entry.items():
            _check_tensor(value, () if name == "step" else tuple(parameters[index].shape), f"its optimizer's {name}")
            if (name == "step" and value <= 0) or (name.endswith("_sq") and (value < 0).any()):
                raise _DamagedError(": its optimizer state has negative values")


def _check_tensor(value: object, shape: tuple[int, ...], what: str, dtype: torch.dtype = torch.float32) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != dtype or tuple(value.shape) != shape:
        raise _DamagedError(f": {what} is not a {str(dtype).removeprefix('torch.')} tensor of shape {shape}")
    if not value.isfinite().all():
        raise _DamagedError(f": {what} holds NaN or infinite values")
