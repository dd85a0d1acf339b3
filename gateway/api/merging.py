"""Several streams as one, in the order in which their parts arrive."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

Part = TypeVar("Part")

_END = object()


async def merged(
    sources: Sequence[Callable[[], AsyncGenerator[Part, None]]], at_once: int
) -> AsyncGenerator[Part, None]:
    """Yield the parts of all sources, of which `at_once` run at a time; a source waits until its part was taken.

    The first error ends all of them, and is raised.
    """
    queue: asyncio.Queue[object] = asyncio.Queue(1)
    left = iter(sources)

    async def run() -> None:
        try:
            for make in left:
                async with aclosing(make()) as source:
                    async for part in source:
                        await queue.put(part)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(_END)

    tasks = [asyncio.create_task(run()) for _ in range(min(at_once, len(sources)))]
    try:
        running = len(tasks)
        while running:
            part = await queue.get()
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
