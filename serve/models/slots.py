"""The slots of a model: a fixed number, and a waiting line of bounded length, first come, first served."""

import asyncio
from collections import deque

from rill.serve.errors import ServeError, WaitingLineFullError


class Slots:
    """Slots 0..slots-1 and a waiting line for `waiting` callers; used on the event loop only."""

    def __init__(self, slots: int, waiting: int) -> None:
        self._free = list(range(slots - 1, -1, -1))  # low slots first, so that memory is touched only as needed
        self.capacity, self._max_waiting = slots, waiting
        self._line: deque[asyncio.Future[int]] = deque()

    @property
    def running(self) -> int:
        """Slots in use."""
        return self.capacity - len(self._free)

    @property
    def waiting(self) -> int:
        """Callers in the line."""
        return len(self._line)

    @property
    def is_full(self) -> bool:
        """Whether there is no free slot, and no room in the line."""
        return not self._free and len(self._line) >= self._max_waiting

    def full_error(self) -> WaitingLineFullError:
        """The error for a caller while the model is full."""
        return WaitingLineFullError(
            f"all {self.capacity} streams are in use and {len(self._line)} calls are waiting; try again later"
        )

    def require_capacity(self) -> None:
        """Raise WaitingLineFullError if the model is full, before any work is done for the caller."""
        if self.is_full:
            raise self.full_error()

    async def acquire(self) -> int:
        """Wait for a slot. Raises WaitingLineFullError at once if the line is full."""
        self.require_capacity()
        if self._free:
            return self._free.pop()
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.release(waiter.result())  # the slot was given at the moment of the cancellation
            elif waiter in self._line:
                self._line.remove(waiter)
            raise

    def release(self, slot: int) -> None:
        """Give a slot back: it goes to the first caller in the line."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(slot)
                return
        self._free.append(slot)

    def refuse_waiting(self, error: ServeError) -> None:
        """Let all callers in the line fail with `error`."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_exception(error)
