"""The device to compute on."""

import torch

from rill.train.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device for `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`. Raises ConfigError without that GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(f"--device {name}: PyTorch sees {count} CUDA GPUs here; use --device auto or cpu")
    return torch.device("cuda", index)
