"""The optimizers, and the learning rate over a run."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rill.train.config import TrainingConfig
from rill.train.nets.ngrams import is_ngram_table

FINAL_RATE = 0.01
WARMUP_SHARE = 0.05  # of the time of a run under --max-minutes, at most


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer that `config` names, AdamW, SGD or RMSprop, of a model's named parameters.

    N-gram tables, which come last, have a weight decay of their own.
    """
    tables: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        (tables if is_ngram_table(name) else others).append(parameter)
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": config.weight_decay}]
    if tables:
        groups.append({"params": tables, "weight_decay": config.ngram_decay})
    rate, momentum = config.learning_rate, config.momentum
    if config.optimizer == "sgd":
        return _plain(torch.optim.SGD)(groups, lr=rate, momentum=momentum)
    if config.optimizer == "rmsprop":
        return _plain(torch.optim.RMSprop)(groups, lr=rate, momentum=momentum)
    return _plain(torch.optim.AdamW)(groups, lr=rate, fused=True)


def _plain(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """`kind` without the wrappers around its methods, which load the compiler of PyTorch: as long as PyTorch itself."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def state_names(config: TrainingConfig) -> set[str]:
    """The names of the state that the optimizer keeps for each parameter after its first step."""
    if config.optimizer == "adamw":
        return {"step", "exp_avg", "exp_avg_sq"}
    buffer = {"momentum_buffer"} if config.momentum else set()
    return buffer if config.optimizer == "sgd" else {"step", "square_avg"} | buffer


def learning_rate(config: TrainingConfig, step: int, done: float) -> float:
    """The rate of a step: linear warm-up over `warmup` steps, times 1 or a cosine down to 1 %.

    `done` is the share of the run that is done, 0 to 1. Where that is a share of the time, the warm-up takes at most
    5 % of it, so that slow steps do not make it most of the run.
    """
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    warm = (step + 1) / config.warmup if config.warmup else 1.0
    if config.max_minutes is not None:
        warm = max(warm, done / WARMUP_SHARE)
    warm = min(warm, 1.0)
    return config.learning_rate * warm * (cosine if config.schedule == "cosine" else 1.0)
