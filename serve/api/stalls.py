"""A limit on the time for which clients may keep their calls waiting."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from rill.serve.errors import StalledError

Result = TypeVar("Result")

CHECKS = 4  # of all calls, in the time that a client has


class ClientWait:
    """A call, handled by the current task: what it is waiting for its client to do, and since when."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task
        self.task, self.is_stalled = task, False
        self.action, self.since = "", 0.0  # time.monotonic()

    def wait_for(self, action: str) -> None:
        """From now on, wait for the client to do something, such as "read"; empty: do not wait any more."""
        self.action, self.since = action, time.monotonic()

    async def until(self, action: str, awaitable: Awaitable[Result]) -> Result:
        """Wait for the client."""
        self.wait_for(action)
        result = await awaitable
        self.wait_for("")
        return result


class StallWatch:
    """Ends calls whose clients keep them waiting for `seconds`, or up to a quarter more; 0: never.

    One timer checks all calls, so that a call needs none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: set[ClientWait] = set()
        self._is_running = False

    def begin(self, wait: ClientWait) -> None:
        """Watch a call."""
        self._waits.add(wait)
        if self._seconds and not self._is_running:
            self._is_running = True
            self._check()

    def end(self, wait: ClientWait) -> None:
        """Stop watching a call."""
        self._waits.remove(wait)

    def reason(self, wait: ClientWait, error: BaseException) -> BaseException:
        """Return why a call failed with `error`: StalledError if it was cancelled here and nowhere else."""
        if isinstance(error, asyncio.CancelledError) and wait.is_stalled and wait.task.uncancel() == 0:
            return StalledError(f"nothing was {wait.action} for {self._seconds:g} seconds")
        return error

    def _check(self) -> None:
        now = time.monotonic()
        for wait in self._waits:
            if wait.action and not wait.is_stalled and now - wait.since >= self._seconds:
                wait.is_stalled = True
                wait.task.cancel()
        asyncio.get_running_loop().call_later(self._seconds / CHECKS, self._check)
