"""How long clients may keep their calls waiting."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from rill.serve.errors import StalledError

Result = TypeVar("Result")

LOOKS = 4  # at all calls, in the time that one may wait


class Wait:
    """A call, handled by the current task: what its client is waited for, and since when."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task
        self.task, self.is_over = task, False
        self.what, self.since = "", 0.0  # time.monotonic()

    def waits_for(self, what: str) -> None:
        """From now on the client is waited for: for what is to be done, as "read"; empty: no longer."""
        self.what, self.since = what, time.monotonic()

    async def until(self, what: str, awaitable: Awaitable[Result]) -> Result:
        """Wait for the client."""
        self.waits_for(what)
        result = await awaitable
        self.waits_for("")
        return result


class StallWatch:
    """Ends calls whose clients keep them waiting for `seconds`, or a quarter more; 0: none.

    One timer looks at all calls, so that a call costs none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: set[Wait] = set()
        self._looks = False

    def begin(self, wait: Wait) -> None:
        """From now on this call is one of them."""
        self._waits.add(wait)
        if self._seconds and not self._looks:
            self._looks = True
            self._look()

    def end(self, wait: Wait) -> None:
        """The call is over."""
        self._waits.remove(wait)

    def reason(self, wait: Wait, error: BaseException) -> BaseException:
        """Why a call failed with `error`: StalledError if we have cancelled it, and nobody else."""
        if isinstance(error, asyncio.CancelledError) and wait.is_over and wait.task.uncancel() == 0:
            return StalledError(f"nothing was {wait.what} for {self._seconds:g} seconds")
        return error

    def _look(self) -> None:
        now = time.monotonic()
        for wait in self._waits:
            if wait.what and not wait.is_over and now - wait.since >= self._seconds:
                wait.is_over = True
                wait.task.cancel()
        asyncio.get_running_loop().call_later(self._seconds / LOOKS, self._look)
