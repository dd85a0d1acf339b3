"""How long clients may keep their calls waiting."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from serve.errors import StalledError

Result = TypeVar("Result")

LOOKS = 4  # at all calls, in the time that one may wait


class Patience:
    """Ends calls whose clients keep them waiting for `seconds`, or a quarter more; 0: none.

    One timer looks at all calls, so that a call costs none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waits: set[Wait] = set()
        self._looks = False

    @contextmanager
    def of(self, wait: "Wait") -> Iterator[None]:
        """For a call that is handled inside. Raises StalledError."""
        self._waits.add(wait)
        if self.seconds and not self._looks:
            self._looks = True
            self._look()
        try:
            yield
        except asyncio.CancelledError:
            if not wait.is_over or wait.task.uncancel() > 0:  # else it is ours alone
                raise
            raise StalledError(f"nothing was {wait.what} for {self.seconds:g} seconds") from None
        finally:
            self._waits.remove(wait)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for wait in self._waits:
            if wait.what and not wait.is_over and loop.time() - wait.since >= self.seconds:
                wait.is_over = True
                wait.task.cancel()
        loop.call_later(self.seconds / LOOKS, self._look)


class Wait:
    """What the client of a call is waited for, and since when."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task
        self.task, self._loop = task, asyncio.get_running_loop()
        self.what, self.since, self.is_over = "", 0.0, False

    async def until(self, what: str, awaitable: Awaitable[Result]) -> Result:
        """Wait for the client: for what is to be done, as "read"."""
        self.what, self.since = what, self._loop.time()
        result = await awaitable
        self.what = ""
        return result
