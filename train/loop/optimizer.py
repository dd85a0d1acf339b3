"""The optimizers, and the learning rate over a run."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from rill.train.config import TrainingConfig

FINAL_RATE = 0.01


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer that `config` names: AdamW, SGD or RMSprop."""
    rate, decay, momentum = config.learning_rate, config.weight_decay, config.momentum
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def state_names(config: TrainingConfig) -> set[str]:
    """The names of the state that the optimizer keeps for each parameter after its first step."""
    if config.optimizer == "adamw":
        return {"step", "exp_avg", "exp_avg_sq"}
    buffer = {"momentum_buffer"} if config.momentum else set()
    return buffer if config.optimizer == "sgd" else {"step", "square_avg"} | buffer


def learning_rate(config: TrainingConfig, step: int, done: float) -> float:
    """The rate of a step: linear warm-up over `warmup` steps, times 1 or a cosine down to 1 %.

    `done` is the share of the run that is done, 0 to 1.
    """
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * (cosine if config.schedule == "cosine" else 1.0)
