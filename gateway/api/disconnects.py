"""The end of a request whose client has left: what is done for it is cancelled at once."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class Disconnect:
    """Cancels the task that enters it when the client leaves; the task then leaves the block without an error.

    with Disconnect(receive) as client:
        …
    if client.has_left: …
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
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
        if self.has_left and kind is asyncio.CancelledError:
            return self._task.uncancel() == 0
        return False
