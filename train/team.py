"""One process, or several that train one model together: `torchrun --nproc-per-node N -m train …`."""

import os
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from train.errors import ConfigError


class Team:
    """The processes of a run. A context manager: inside it, they can hear one another.

    Every process takes `rows(batch)` of each global batch; process 0 alone writes files and prints. Alone, all of this
    does nothing.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.size > 1:
            if torch.cuda.is_available():
                self._device = torch.device("cuda", self.local_rank)
                torch.cuda.set_device(self._device)
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return self

    def __exit__(self, *error: object) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device that `name` means for this process: each takes a GPU of its own."""
        if self.size == 1 or not torch.cuda.is_available() or name == "cpu":
            return name
        if name not in ("auto", "cuda"):
            raise ConfigError(f"several processes cannot share {name}; use --device cuda")
        return f"cuda:{self.local_rank}"

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch. Raises ConfigError if they cannot be shared out evenly."""
        if batch % self.size:
            raise ConfigError(f"a batch of {batch} rows cannot be shared by {self.size} processes; change --batch")
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def most(self, *values: float) -> list[float]:
        """The largest of each value over all processes: all of them then decide the same."""
        return self._together(values, dist.ReduceOp.MAX) if self.size > 1 else list(values)

    def mean(self, value: float) -> float:
        """The mean of `value` over all processes."""
        return self._together([value], dist.ReduceOp.SUM)[0] / self.size if self.size > 1 else value

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """The `part` of every process, joined along `dim`."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def _together(self, values: tuple[float, ...] | list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        numbers = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(numbers, how)
        return [float(number) for number in numbers.tolist()]
