"""trainer.pt: where a run stands, and everything it needs to go on from there as if it had never stopped."""

import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from train.files import replace_file
from train.model import CharacterModel, State
from train.run import RunConfig, RunError, check_weights

CHECKPOINT = "trainer.pt"
FORMAT = 2


@dataclass
class Position:
    """Where a run stands after `step` optimiser steps; everything that is not weights or optimiser state.

    `loss_sum` is the loss, in nats, of the `loss_chars` characters read since the last line of metrics.jsonl;
    `seconds` is the time spent so far, over all resumes. The two byte counts are the lengths of metrics.jsonl and
    samples.txt, which are cut back to them on resume.
    """

    step: int = 0
    state: State | None = None
    chars: int = 0
    loss_sum: float = 0.0
    loss_chars: int = 0
    seconds: float = 0.0
    seconds_of_last_line: float = 0.0
    evaluations: int = 0
    train_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int = 0
    metrics_bytes: int = 0
    samples_bytes: int = 0


def save_checkpoint(
    folder: Path, config: RunConfig, position: Position, model: CharacterModel, optimizer: torch.optim.Optimizer
) -> None:
    """Write trainer.pt, which `torch.load(weights_only=True)` reads. Raises OSError."""
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
    replace_file(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(
    folder: Path, config: RunConfig, model: CharacterModel, optimizer: torch.optim.Optimizer, zero: State | None
) -> Position:
    """Put trainer.pt back into `model`, `optimizer` and the random generators.

    `zero` is the state that the run began with if it carries one. Raises RunError if the file is damaged or belongs to
    another run.
    """
    path = folder / CHECKPOINT
    device = model.linear.weight.device
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise RunError(
                f"{path} has format {content['format']}; this version of Rill reads {FORMAT}; start again with another"
                " --out"
            )
        if content["config"] != config.digest():
            raise RunError(f"{path} belongs to another run than {folder}'s config.json; start again with another --out")
        position = _position(content["position"], zero)
        check_weights(content["model"], config, path)
        _check_optimizer(content["optimizer"]["state"], model, position.step)
        model.load_state_dict(content["model"])
        own = optimizer.state_dict()["param_groups"]  # its options are config.json's
        optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": own})
        torch.set_rng_state(content["random"])
        if device.type == "cuda" and content["cuda_random"] is not None:
            torch.cuda.set_rng_state(content["cuda_random"], device)
    except RunError:
        raise
    except _Damage as damage:
        raise RunError(f"{path} is damaged: {damage}; start again with another --out") from None
    except Exception as error:  # torch.load raises many kinds, according to which byte is wrong
        raise RunError(f"{path} is damaged ({type(error).__name__}); start again with another --out") from error
    if position.state is not None:
        position.state = tuple(part.to(device) for part in position.state)
    return position


class _Damage(Exception):
    """What is wrong with the contents of a trainer.pt that can be read."""


def _position(values: dict[str, Any], zero: State | None) -> Position:
    """The position of a checkpoint, each value of it possible. Raises _Damage."""
    names = [field.name for field in fields(Position)]
    if sorted(values) != sorted(names):
        raise _Damage("its position lacks a value, or has one too many")
    position = Position(**values)
    for field in fields(Position):
        value = values[field.name]
        if field.name == "state" or (value is None and field.default is None):
            continue
        kinds = (int,) if type(field.default) is int else (int, float)
        if type(value) not in kinds or not math.isfinite(value) or value < 0:
            raise _Damage(f"its position has {field.name} {value!r}")
    if position.best_step > position.step or position.loss_chars > position.chars:
        raise _Damage("its position contradicts itself")
    _check_state(position.state, zero if position.step else None)
    return position


def _check_state(state: object, expected: State | None) -> None:
    if expected is None:
        if state is not None:
            raise _Damage("its position has a state where none is carried")
        return
    if not isinstance(state, tuple) or len(state) != len(expected):
        raise _Damage(f"the state of its position is not {len(expected)} tensors")
    for part, like in zip(state, expected, strict=True):
        _check_tensor(part, tuple(like.shape), "the state of its position")


def _check_optimizer(state: dict[int, dict[str, Any]], model: CharacterModel, step: int) -> None:
    """Raise _Damage unless `state` is AdamW's after `step` steps: empty, or three tensors for each parameter."""
    parameters = list(model.parameters())
    if set(state) != set(range(len(parameters) if step else 0)):
        raise _Damage("its optimizer state is not that of the model's parameters")
    for index, entry in state.items():
        if set(entry) != {"step", "exp_avg", "exp_avg_sq"}:
            raise _Damage("its optimizer state is not AdamW's")
        for name, value in entry.items():
            _check_tensor(value, () if name == "step" else tuple(parameters[index].shape), f"its optimizer's {name}")
        if entry["step"] <= 0 or (entry["exp_avg_sq"] < 0).any():
            raise _Damage("its optimizer state has negative values")


def _check_tensor(value: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or tuple(value.shape) != shape:
        raise _Damage(f"{what} is not a float32 tensor of shape {shape}")
    if not value.isfinite().all():
        raise _Damage(f"{what} holds NaN or infinite values")
