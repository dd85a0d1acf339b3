"""The end of a request whose client has left, or whose gateway ends: what is done for it is cancelled at once."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from rill.gateway.drain import Drain
from rill.gateway.errors import draining_error


class Disconnect:
    """Cancels the task that enters it when the client leaves; the task then leaves the block without an error.

    A task that is cancelled because the gateway ends leaves it with ApiError, as long as an answer can be given.
    """

    def __init__(self, receive: Receive, drain: Drain | None = None) -> None:
        self._receive, self._drain = receive, drain
        self.has_left = False

    def close(self) -> None:
        """Watch no longer: the answer is complete, and a client may leave."""
        self._watch.cancel()

    async def _wait(self, task: "asyncio.Task[object]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.has_left = True
        task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task
        self._task = task
        self._watch = asyncio.create_task(self._wait(task))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self.close()
        if kind is not asyncio.CancelledError:
            return False
        if self.has_left:
            return self._task.uncancel() == 0
        if self._drain and self._drain.has_begun:
            self._task.uncancel()
            raise draining_error() from None
        return False
