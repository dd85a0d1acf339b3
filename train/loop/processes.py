"""Several processes that train one model together: `torchrun --nproc-per-node N -m rill.train …`."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # before any process group: it would keep one alive, whose threads could abort the exit
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from rill.train.errors import ConfigError
from rill.train.loop.team import Team

REPORTED = "reported"


class Processes(Team):
    """A team of several processes. Numbers travel over gloo, on the CPU; tensors on GPUs over nccl."""

    def __init__(self) -> None:
        self.size = int(os.environ["WORLD_SIZE"])
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._store: Any = None  # a torch.distributed.Store, a type that PyTorch does not export

    def join(self) -> None:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            self._store, _, _ = next(rendezvous("env://"))
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
        except (ValueError, dist.DistError) as error:
            raise ConfigError(
                f"WORLD_SIZE is {self.size}, but the processes cannot find one another ({error}); start them with"
                " torchrun"
            ) from None

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """Give each process a GPU of its own. Raises ConfigError if there are too few, or `name` is one of them."""
        if name == "cpu" or not torch.cuda.is_available():
            return name
        if name not in ("auto", "cuda"):
            raise ConfigError(f"several processes cannot share {name}; use --device cuda")
        if self.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"{self.local_size} processes need as many GPUs, but PyTorch sees {torch.cuda.device_count()} here;"
                " start fewer, or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def rows(self, batch: int) -> slice:
        if batch % self.size:
            raise ConfigError(f"a batch of {batch} rows cannot be shared by {self.size} processes; change --batch")
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def maximum(self, *values: float) -> list[float]:
        return _all_reduce(values, dist.ReduceOp.MAX)

    def mean(self, value: float) -> float:
        return _all_reduce([value], dist.ReduceOp.SUM)[0] / self.size

    def gather(self, part: Tensor, dim: int) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim)

    def wait(self) -> None:
        self.maximum(0.0)

    def is_loss_of_process(self, error: RuntimeError) -> bool:
        return isinstance(error, dist.DistError) or "gloo" in str(error)

    def report(self, message: str) -> None:
        try:
            is_first = self._store is None or self._store.add(REPORTED, 1) == 1
        except dist.DistError:  # torchrun itself has ended
            is_first = True
        if is_first:
            super().report(message)


def _all_reduce(values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, operation)
    return [float(number) for number in numbers.tolist()]
