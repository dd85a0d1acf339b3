"""trainer.pt: where a run stands, and everything it needs to go on from there as if it had never stopped."""

import io
import math
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rill.train.config import TrainingConfig
from rill.train.loop.optimizer import state_names
from rill.train.nets.cells import State
from rill.train.nets.model import CharacterModel
from rill.train.record.files import replace_file
from rill.train.record.run import RunConfig, RunError, check_weights

CHECKPOINT = "trainer.pt"
PREVIOUS = "trainer.previous.pt"
FORMAT = 3


@dataclass
class Position:
    """Where a run stands after `step` optimiser steps; everything that is not weights or optimiser state.

    `loss_sum` is the loss, in nats, of the `loss_chars` characters read since the last line of metrics.jsonl, or since
    the beginning of the epoch. `seconds` is the time spent so far, over all resumes; `stalled` counts evaluations since
    the best one; `kept_step` is that of model.safetensors. The two byte counts are the lengths of metrics.jsonl and
    samples.txt, which are cut back to them on resume.
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
    """Write trainer.pt, which `torch.load(weights_only=True)` reads; the one before it stays as trainer.previous.pt.

    Raises OSError; at every moment one of the two is whole.
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
    replace_file(folder / CHECKPOINT, buffer.getvalue(), previous=folder / PREVIOUS)


def newest(folder: Path) -> list[Path]:
    """The checkpoints that there are, the newest first."""
    return [path for path in (folder / CHECKPOINT, folder / PREVIOUS) if path.exists()]


def load_checkpoint(
    folder: Path, config: RunConfig, model: CharacterModel, optimizer: torch.optim.Optimizer, zero: State | None
) -> tuple[Position, str]:
    """Put the newest good checkpoint back into `model`, `optimizer` and the random generators.

    `zero` is the state that the run began with if it carries one. Where trainer.pt is damaged or missing, the one
    before it is read, and the second value says so. Raises RunError if none can be read, or one is another run's.
    """
    notices = [] if (folder / CHECKPOINT).exists() else [f"{folder / CHECKPOINT} is missing"]
    for path in newest(folder):
        try:
            content = _read(path, config, model, zero)
        except _Damage as damage:
            notices.append(f"{path} is damaged{damage}")
            continue
        position = Position(**content["position"])
        _restore(content, model, optimizer)
        notice = f"{'; '.join(notices)}; going on from {path}, step {position.step}" if notices else ""
        return position, notice
    raise RunError(f"{'; '.join(notices)}; start again with another --out")


def _read(path: Path, config: RunConfig, model: CharacterModel, zero: State | None) -> dict[str, Any]:
    """The contents of a checkpoint, every value of it checked. Raises _Damage, and RunError if it is another run's."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
            if archive.testzip() is not None:
                raise _Damage(": a checksum in it is wrong")
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
        position = _position(content["position"], zero)
        _check_weights(content["model"], config, path)
        _check_optimizer(content["optimizer"]["state"], model, config.training, position.step)
        torch.Generator().set_state(content["random"])
        return content
    except (RunError, _Damage):
        raise
    except Exception as error:  # torch.load raises many kinds, according to which byte is wrong
        raise _Damage(f" ({type(error).__name__})") from error


def _restore(content: dict[str, Any], model: CharacterModel, optimizer: torch.optim.Optimizer) -> None:
    device = model.linear.weight.device
    position = content["position"]
    if position["state"] is not None:
        position["state"] = tuple(part.to(device) for part in position["state"])
    model.load_state_dict(content["model"])
    own = optimizer.state_dict()["param_groups"]  # its options are config.json's
    optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": own})
    torch.set_rng_state(content["random"])
    if device.type == "cuda" and content["cuda_random"] is not None:
        torch.cuda.set_rng_state(content["cuda_random"], device)


class _Damage(Exception):
    """What is wrong with a checkpoint."""


def _position(values: dict[str, Any], zero: State | None) -> Position:
    """The position of a checkpoint, each value of it possible. Raises _Damage."""
    names = [field.name for field in fields(Position)]
    if sorted(values) != sorted(names):
        raise _Damage(": its position lacks a value, or has one too many")
    position = Position(**values)
    for field in fields(Position):
        value = values[field.name]
        if field.name == "state" or (value is None and field.default is None):
            continue
        kinds = (int,) if type(field.default) is int else (int, float)
        if type(value) not in kinds or not math.isfinite(value) or value < 0:
            raise _Damage(f": its position has {field.name} {value!r}")
    if max(position.kept_step, position.evaluated_step) > position.step or position.loss_chars > position.chars:
        raise _Damage(": its position contradicts itself")
    _check_state(position.state, zero if position.step else None)
    return position


def _check_state(state: object, expected: State | None) -> None:
    if expected is None:
        if state is not None:
            raise _Damage(": its position has a state where none is carried")
        return
    if not isinstance(state, tuple) or len(state) != len(expected):
        raise _Damage(f": the state of its position is not {len(expected)} tensors")
    for part, like in zip(state, expected, strict=True):
        _check_tensor(part, tuple(like.shape), "the state of its position")


def _check_weights(weights: dict[str, Tensor], config: RunConfig, path: Path) -> None:
    try:
        check_weights(weights, config, path)
    except RunError as error:
        detail = str(error).removeprefix(str(path))
        raise _Damage(detail if detail.startswith(":") else f": it{detail}") from None


def _check_optimizer(
    state: dict[int, dict[str, Any]], model: CharacterModel, training: TrainingConfig, step: int
) -> None:
    """Raise _Damage unless `state` is the optimiser's after `step` steps: the same tensors for each parameter."""
    parameters = list(model.parameters())
    names = state_names(training)
    if set(state) != set(range(len(parameters) if step and names else 0)):
        raise _Damage(": its optimizer state is not that of the model's parameters")
    for index, entry in state.items():
        if set(entry) != names:
            raise _Damage(f": its optimizer state is not that of {training.optimizer}")
        for name, value in entry.items():
            _check_tensor(value, () if name == "step" else tuple(parameters[index].shape), f"its optimizer's {name}")
            if (name == "step" and value <= 0) or (name.endswith("_sq") and (value < 0).any()):
                raise _Damage(": its optimizer state has negative values")


def _check_tensor(value: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or tuple(value.shape) != shape:
        raise _Damage(f": {what} is not a float32 tensor of shape {shape}")
    if not value.isfinite().all():
        raise _Damage(f": {what} holds NaN or infinite values")
