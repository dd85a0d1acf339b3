"""One process, or several that train one model together: `torchrun --nproc-per-node N -m rill.train …`."""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # it keeps the process group of its import; a group's threads could abort the exit
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from rill.train.errors import ConfigError

REPORTED = "reported"


class Team:
    """The processes of a run. Between `join` and `leave` they can hear one another.

    Every process takes `rows(batch)` of each global batch; process 0 alone writes files and prints. Alone, all of this
    does nothing. Numbers travel over gloo, on the CPU; tensors on GPUs over nccl.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._store: Any = None  # a torch.distributed.Store, a type that PyTorch does not export

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the other processes. Raises ConfigError if they cannot be found."""
        if self.size == 1:
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            self._store, _, _ = next(rendezvous("env://"))
            dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
        except (ValueError, dist.DistError) as error:
            raise ConfigError(
                f"WORLD_SIZE is {self.size}, but the processes do not find one another ({error}); start them with"
                " torchrun"
            ) from None

    def leave(self) -> None:
        """Leave the others. Where one still waits for this process, that fails once this process has ended."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device that `name` means for this process: each takes a GPU of its own. Raises ConfigError."""
        if self.size == 1 or name == "cpu" or not torch.cuda.is_available():
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
        self.most(0.0)

    def lost(self, error: RuntimeError) -> bool:
        """Whether `error` means that another process has ended in the middle of what needs all of them."""
        return self.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def report(self, message: str) -> None:
        """Print on standard error why this process ends, unless another one has already said why it does.

        As a rule all end for the same reason, or because one of them has. Call this before `leave`.
        """
        if self._first_to_report():
            print(message, file=sys.stderr)

    def _first_to_report(self) -> bool:
        try:
            return self._store is None or self._store.add(REPORTED, 1) == 1
        except dist.DistError:  # torchrun itself has ended
            return True

    def _together(self, values: tuple[float, ...] | list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, how)
        return [float(number) for number in numbers.tolist()]
