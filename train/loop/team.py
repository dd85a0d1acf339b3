"""The processes of a run: this one alone, or those that `torchrun … -m rill.train` started. Needs no PyTorch."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Team:
    """The processes that train one model together; this class is a single process, which has nobody to wait for.

    Between `join` and `leave` the processes can communicate. Each takes `rows(batch)` of every global batch; process 0
    alone writes files and prints.
    """

    size = 1
    rank = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the other processes. Raises ConfigError if they cannot be found."""

    def leave(self) -> None:
        """Leave the others; a process that still waits for this one fails once this one has ended."""

    def device(self, name: str) -> str:
        """The device that `name` means for this process. Raises ConfigError if the processes cannot share it."""
        return name

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch. Raises ConfigError if the rows cannot be shared evenly."""
        return slice(batch)

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over all processes, so that all of them decide the same."""
        return list(values)

    def mean(self, value: float) -> float:
        """The mean of `value` over all processes."""
        return value

    def gather(self, part: "Tensor", dim: int) -> "Tensor":
        """The `part` of every process, joined along `dim`."""
        return part

    def wait(self) -> None:
        """Wait until every process has called this."""

    def is_loss_of_process(self, error: RuntimeError) -> bool:
        """Whether `error` means that another process has ended during an operation of all processes."""
        return False

    def report(self, message: str) -> None:
        """Print on standard error why this process ends, unless another process has reported first.

        As a rule all end for the same reason, or because one of them has ended. Call this before `leave`.
        """
        print(message, file=sys.stderr)
