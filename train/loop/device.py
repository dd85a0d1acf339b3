"""Where to compute."""

import torch

from rill.train.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one, quietly; `cuda` or `cuda:N` without it raises ConfigError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise ConfigError(f"device {name} asked for, but PyTorch sees {count} CUDA GPUs here; use --device auto or cpu")
    return torch.device("cuda", int(index or 0))
