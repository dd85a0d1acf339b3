"""How long a client may keep a call waiting."""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

from serve.errors import StalledError

Result = TypeVar("Result")


class Patience:
    """Ends what is inside of it when the client keeps it waiting for `seconds`, with StalledError; 0: never.

    A wait costs two assignments, not a timer: whether one lasts too long is looked at once in `seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._what, self._since = seconds, "", 0.0
        self._loop, self._timeout = asyncio.get_running_loop(), asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, what: str, awaitable: Awaitable[Result]) -> Result:
        """Wait for the client: for what is to be done, as "read"."""
        self._what, self._since = what, self._loop.time()
        result = await awaitable
        self._what = ""
        return result

    def _look(self) -> None:
        left = self._since + self._seconds - self._loop.time() if self._what else self._seconds
        if left <= 0:
            self._timeout.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(left, self._look)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._seconds:
            self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise StalledError(f"nothing was {self._what} for {self._seconds:g} seconds") from None
