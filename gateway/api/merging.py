"""Several streams as one, in the order in which their parts arrive."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

Part = TypeVar("Part")
Source = Callable[[], AsyncGenerator[Part, None]]

_END = object()


async def merged(
    sources: Sequence[Source[Part]], at_once: int, is_full: Callable[[Exception], bool] = lambda error: False
) -> AsyncGenerator[Part, None]:
    """Yield the parts of all sources, of which `at_once` run at a time; a source waits until its part was taken.

    A source that has no part yet and fails with an error that `is_full` knows begins again when another one has ended,
    if there is another. Any other error ends all of them, and is raised.
    """
    handover = _Handover()
    workers = _Workers(iter(sources), handover, is_full)
    tasks = [asyncio.create_task(workers.run()) for _ in range(min(at_once, len(sources)))]
    try:
        running = len(tasks)
        while running:
            part = await handover.take()
            if isinstance(part, Exception):
                raise part
            if part is _END:
                running -= 1
            else:
                yield part  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Handover:
    """Parts that wait to be taken, first come, first served: asyncio's queues let who comes late go first."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[object, asyncio.Future[None]]] = deque()
        self._has_any = asyncio.Event()

    async def give(self, part: object) -> None:
        """Wait until the part is taken."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, taken))
        self._has_any.set()
        await taken

    async def take(self) -> object:
        """Return the part that has waited the longest."""
        while not self._waiting:
            self._has_any.clear()
            await self._has_any.wait()
        part, taken = self._waiting.popleft()
        taken.set_result(None)
        return part


class _Workers(Generic[Part]):
    """What the tasks share that run the sources."""

    def __init__(
        self, sources: Iterator[Source[Part]], handover: _Handover, is_full: Callable[[Exception], bool]
    ) -> None:
        self._sources, self._handover, self._is_full = sources, handover, is_full
        self._active, self._has_ended = 0, asyncio.Event()

    async def run(self) -> None:
        """Run one source after the other."""
        try:
            for source in self._sources:
                while not await self._is_run(source):
                    await self._has_ended.wait()
        except Exception as error:
            await self._handover.give(error)
        else:
            await self._handover.give(_END)

    async def _is_run(self, source: Source[Part]) -> bool:
        """Run a source to its end; tell whether that was possible now."""
        has_begun = False
        self._active += 1
        try:
            async with aclosing(source()) as parts:
                async for part in parts:
                    has_begun = True
                    await self._handover.give(part)
        except Exception as error:
            if has_begun or self._active == 1 or not self._is_full(error):
                raise
            return False
        finally:
            self._active -= 1
            if has_begun:
                self._has_ended.set()
                self._has_ended = asyncio.Event()
        return True
