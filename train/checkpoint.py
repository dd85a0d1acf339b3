"""trainer.pt: where a run stands, and everything it needs to go on from there as if it had never stopped."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from train.files import replace_file
from train.model import CharacterModel, State
from train.run import RunError

CHECKPOINT = "trainer.pt"
FORMAT = 1


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
    folder: Path, position: Position, model: CharacterModel, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Write trainer.pt, which `torch.load(weights_only=True)` reads."""
    content = {
        "format": FORMAT,
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
    folder: Path, model: CharacterModel, optimizer: torch.optim.Optimizer, device: torch.device
) -> Position:
    """Put trainer.pt back into `model`, `optimizer` and the random generators. Raises RunError if it is damaged."""
    path = folder / CHECKPOINT
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise RunError(f"{path} has format {content['format']}; this version of Rill reads {FORMAT}")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random"])
        if device.type == "cuda" and content["cuda_random"] is not None:
            torch.cuda.set_rng_state(content["cuda_random"], device)
        position = Position(**content["position"])
    except RunError:
        raise
    except Exception as error:  # torch.load raises many kinds, according to which byte is wrong
        raise RunError(f"{path} is damaged ({type(error).__name__}); start again with another --out") from error
    if position.state is not None:
        position.state = tuple(part.to(device) for part in position.state)
    return position
