"""`AsyncClient.score_lines`: the loops around a `LineQueue`, in tasks of one event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc

from rill.client.errors import ServerError, closed_error
from rill.client.lines import LineBatch, LineQueue, LineScore
from rill.client.origin import REQUEST_ID
from rill.client.streams import end_call
from rill.v1 import rill_pb2 as pb

READ_AT_ONCE = 64  # lines of a plain iterable, between two turns of the event loop


class AsyncLineCalls:
    """The calls for `lines`, at `methods`: Score of each address. `closed` is set when the client is closed."""

    def __init__(
        self,
        lines: Iterable[str] | AsyncIterable[str],
        queue: LineQueue,
        methods: Sequence[Any],
        closed: asyncio.Event,
    ) -> None:
        self._lines, self._queue, self._methods, self._closed = lines, queue, methods, closed
        self._changed = asyncio.Event()  # scores have come, or there is room for lines
        self._has_room, self._may_call = asyncio.Event(), asyncio.Event()
        self._is_cancelled = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def scores(
        self, models: Callable[[], Awaitable[pb.ListModelsResponse]], include_end: bool | None
    ) -> AsyncGenerator[LineScore, None]:
        """Yield the scores in order. Raises ServerError, and what the iterable of lines raises."""
        if self._closed.is_set():
            raise closed_error()
        self._queue.begin(await models(), include_end)
        try:
            self._start(self._read())
            while not self._is_cancelled:
                self._changed.clear()
                if (score := self._queue.next_score()) is not None:
                    if self._queue.has_room:
                        self._has_room.set()
                    yield score
                elif self._queue.is_complete:
                    return
                else:
                    await self._changed.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """End the loop, from another task."""
        self._is_cancelled = True
        self._changed.set()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self) -> None:
        failure: BaseException | None = None
        try:
            if isinstance(self._lines, AsyncIterable):
                async for text in self._lines:
                    await self._add(text)
            else:
                for number, text in enumerate(self._lines):
                    await self._add(text)
                    if number % READ_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except Exception as raised:  # the caller's task raises it
            failure = raised
        self._queue.close(failure)
        self._changed.set()

    async def _add(self, text: str) -> None:
        while not self._queue.has_room:
            self._has_room.clear()
            await self._has_room.wait()
        self._queue.add(text)
        self._call_for_lines()

    def _call_for_lines(self) -> None:
        while (batch := self._queue.take()) is not None:
            self._start(self._score(batch))
        self._changed.set()
        self._may_call.set()

    async def _score(self, batch: LineBatch) -> None:
        try:
            await self._make_calls(batch)
        except ServerError as failure:
            self._queue.fail(batch.first, failure)
        self._queue.pause()
        self._call_for_lines()

    async def _make_calls(self, batch: LineBatch) -> None:
        """Make the calls that a batch takes. Raises ServerError."""
        metadata = ((REQUEST_ID, batch.request_id),)
        while (request := batch.request()) is not None:
            if self._closed.is_set():
                raise closed_error()
            call = self._methods[batch.address](request, timeout=batch.time_left(), metadata=metadata)
            error = None
            try:
                async for message in call:
                    if message is None:  # as gRPC for asyncio says that it cannot be parsed
                        raise ServerError(grpc.StatusCode.INTERNAL, "Exception deserializing response!")
                    batch.received(message)
                    self._changed.set()
            except grpc.RpcError as raised:
                error = raised
            finally:
                end_call(call)
            await self._rest(batch, error)

    async def _rest(self, batch: LineBatch, error: grpc.RpcError | None) -> None:
        """Wait for the next attempt, and where a server had no room until one less call runs. Raises ServerError."""
        delay = batch.ended(error)
        self._changed.set()
        if not batch.was_refused:
            await asyncio.sleep(delay)
            return
        self._queue.pause()
        try:
            await asyncio.sleep(delay)
            while not self._queue.may_call:
                self._may_call.clear()
                await self._may_call.wait()
        finally:
            self._queue.unpause()
