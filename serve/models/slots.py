"""Who gets a slot: a fixed number of them, and a waiting line of bounded length, first come first served."""

import asyncio
from collections import deque

from rill.serve.errors import ServeError, WaitingLineFullError


class Slots:
    """Slots 0..slots-1 and a waiting line for `waiting` callers; used on the event loop only."""

    def __init__(self, slots: int, waiting: int) -> None:
        self._free = list(range(slots - 1, -1, -1))  # low slots first: memory is touched as it is needed
        self._slots, self._most_waiting = slots, waiting
        self._line: deque[asyncio.Future[int]] = deque()

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._slots - len(self._free)

    @property
    def waiting(self) -> int:
        """Callers in the line."""
        return len(self._line)

    @property
    def is_full(self) -> bool:
        """Nobody can come in now, not even to wait."""
        return not self._free and len(self._line) >= self._most_waiting

    def full_error(self) -> WaitingLineFullError:
        """What those are told for whom there is no room."""
        return WaitingLineFullError(
            f"all {self._slots} streams are in use and {len(self._line)} calls are waiting; try again later"
        )

    def require_capacity(self) -> None:
        """Raise WaitingLineFullError if nobody can come in now: before any work is done for who cannot."""
        if self.is_full:
            raise self.full_error()

    async def acquire(self) -> int:
        """A slot, as soon as there is one. Raises WaitingLineFullError at once if the line is full."""
        self.require_capacity()
        if self._free:
            return self._free.pop()
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if (
                waiter.done() and not waiter.cancelled() and not waiter.exception()
            ):  # a slot was given in the moment of cancellation
                self.release(waiter.result())
            elif waiter in self._line:
                self._line.remove(waiter)
            raise

    def release(self, slot: int) -> None:
        """The slot is free: it goes to the first in the line."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(slot)
                return
        self._free.append(slot)

    def refuse_waiting(self, error: ServeError) -> None:
        """Let all who wait fail with `error`."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_exception(error)
