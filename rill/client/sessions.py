"""Live states on a server: `Session` for ordinary programs, `AsyncSession` for asyncio; clients make them (`interact`).

    with Client("127.0.0.1:50051") as client, client.interact(temperature=0.7, seed=7) as session:
        session.feed("ROMEO:")
        for piece in session.generate(max_chars=400):
            print(piece, end="", flush=True)
        token = session.resume_token

An event is read when somebody waits for one, by whoever does: a slow reader keeps the server from going far ahead. What
events mean is the business of `rill.client.interaction`. When its server ends, a session is over, with a ServerError;
`resume_token` is then the last state that the server gave, and another session, or `generate`, goes on from there.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import aclosing, closing, suppress
from typing import Any, NamedTuple, Self, TypeVar

import grpc
import grpc.aio

from rill.client.failover import ServerError
from rill.client.interaction import Answer, Dialogue, Generation, SessionStateError, sampling_of
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Awaited = TypeVar("Awaited", Answer, Generation)


class Beginning(NamedTuple):
    """What a session is opened with."""

    model: str
    resume_token: bytes
    sampling: pb.Sampling


def _closed() -> ServerError:
    return ServerError(grpc.StatusCode.CANCELLED, "the session is closed")


def _not_open(_: pb.InteractRequest) -> None:
    raise SessionStateError("the session is not open: use it in a with statement")


class _Known:
    """What both kinds of session know without asking."""

    def __init__(self, stubs: Sequence[TextGenerationStub], beginning: Beginning, timeout: float | None) -> None:
        self._stubs, self._beginning, self._timeout = stubs, beginning, timeout
        self._dialogue = Dialogue(_not_open)
        self._call: Any = None

    @property
    def seed(self) -> int:
        """What the session was opened with, or the server drew."""
        return self._dialogue.seed

    @property
    def model_id(self) -> str:
        """sha256 over graphs and vocabulary, in hexadecimal."""
        return self._dialogue.model_id

    @property
    def position(self) -> int:
        """Generated characters of the stream, as far as they have come."""
        return self._dialogue.position

    @property
    def resume_token(self) -> bytes:
        """The last state that the server gave."""
        return self._dialogue.resume_token

    @property
    def resume_position(self) -> int:
        """Generated characters before that state."""
        return self._dialogue.resume_position

    def _may_try_another(self, stub: TextGenerationStub, error: BaseException) -> bool:
        is_away = isinstance(error, ServerError) and error.code is grpc.StatusCode.UNAVAILABLE
        return is_away and stub is not self._stubs[-1]


class Session(_Known):
    """One live state, in a slot of the server's for as long as the with statement lasts.

    Methods raise ServerError when the call has ended, and OrderError, which changes nothing, for `feed` and `generate`
    while it generates. Other threads may use it too: to `pause`, say.
    """

    def __init__(self, stubs: Sequence[TextGenerationStub], beginning: Beginning, timeout: float | None) -> None:
        super().__init__(stubs, beginning, timeout)
        self._actions: queue.SimpleQueue[pb.InteractRequest | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._is_read = False  # by one thread, for all

    def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read `text`; returns the `logprob` that it gave it, in nats."""
        with self._changed:
            answer = self._dialogue.feed(text)
        fed: pb.InteractResponse.Fed = self._wait(answer).take()
        return fed

    def generate(self, **parameters: Any) -> Generator[str, None, None]:
        """The pieces of a text as they arrive, up to its limit, a stop or `pause`. Parameters as for `stream`."""
        with closing(self.stream(**parameters)) as messages:
            for message in messages:
                if message.text:
                    yield message.text

    def stream(self, **parameters: Any) -> Generator[pb.GenerateResponse, None, None]:
        """The messages of a text; it begins when the first is asked for.

        `parameters`: max_chars, stop, include_stop, logprobs and chars_per_second, as in rill.proto. An iterator that
        is left early pauses the text; what was made and not taken belongs to it all the same.
        """
        with self._changed:
            generation = self._dialogue.generate(**parameters)
        try:
            while (message := self._wait(generation).take()) is not None:
                yield message
        finally:
            self.pause()
            while not generation.is_over:
                generation.messages.clear()
                self._wait(generation)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what was made."""
        with self._changed, suppress(ServerError):  # its reader hears of that
            self._dialogue.pause()

    def update(self, **sampling: Any) -> None:
        """Change temperature, top_k, top_p, min_p, seed or logit_bias, for the characters to come.

        Nothing answers. Values without meaning end the session, which the next `feed` or text raises; a snapshot asked
        for right behind them may be of the state before.
        """
        with self._changed:
            self._dialogue.update(sampling_of(sampling))

    def snapshot(self) -> pb.InteractResponse.Snapshot:
        """The state as it is: a `resume_token` and its `position`."""
        with self._changed:
            answer = self._dialogue.snapshot()
        snapshot: pb.InteractResponse.Snapshot = self._wait(answer).take()
        return snapshot

    def close(self) -> None:
        """End the call, which frees the slot."""
        with self._changed:
            self._dialogue.ended(_closed())
            self._actions.put(None)
        if self._call:
            self._call.cancel()

    def _wait(self, awaited: Awaited) -> Awaited:
        """Read events, or let another thread read them, until this is ready."""
        with self._changed:
            while not awaited.is_ready:
                if self._is_read:
                    self._changed.wait()
                    continue
                self._is_read = True
                self._changed.release()
                try:
                    event, error = self._next()
                finally:
                    self._changed.acquire()
                    self._is_read = False
                    self._changed.notify_all()
                if event is None:
                    self._dialogue.ended(error)
                else:
                    self._dialogue.received(event)
        return awaited

    def _next(self) -> tuple[pb.InteractResponse | None, ServerError | None]:
        """The next event, or None and why there are no more."""
        try:
            return next(self._call, None), None
        except grpc.RpcError as error:
            return None, ServerError.of(error)
        except BaseException:  # Ctrl-C: gRPC would lose the event that it waits for
            self.close()
            raise

    def __enter__(self) -> Self:
        for stub in self._stubs:
            self._actions = queue.SimpleQueue()
            self._dialogue = Dialogue(self._actions.put)
            self._call = stub.Interact(iter(self._actions.get, None), timeout=self._timeout)
            try:
                self._wait(self._dialogue.open(*self._beginning)).take()
                self.snapshot()
                return self
            except BaseException as error:
                self.close()
                if not self._may_try_another(stub, error):
                    raise
        raise AssertionError("there is at least one address")

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSession(_Known):
    """`Session` for asyncio: what waits there is asynchronous here. Cancelling what waits does not end the session."""

    def __init__(self, stubs: Sequence[TextGenerationStub], beginning: Beginning, timeout: float | None) -> None:
        super().__init__(stubs, beginning, timeout)
        self._actions: asyncio.Queue[pb.InteractRequest | None] = asyncio.Queue()
        self._events: AsyncIterator[pb.InteractResponse]  # not `read`, which stops where a last action cannot be sent
        self._reading: asyncio.Task[None] | None = None  # the next event, for all who wait

    async def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read `text`; returns the `logprob` that it gave it, in nats."""
        fed: pb.InteractResponse.Fed = (await self._wait(self._dialogue.feed(text))).take()
        return fed

    async def generate(self, **parameters: Any) -> AsyncGenerator[str, None]:
        """The pieces of a text as they arrive, up to its limit, a stop or `pause`. Parameters as for `stream`."""
        async with aclosing(self.stream(**parameters)) as messages:
            async for message in messages:
                if message.text:
                    yield message.text

    async def stream(self, **parameters: Any) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The messages of a text; it begins when the first is asked for. See `Session.stream`.

        Where a loop over it may be left early, `contextlib.aclosing` makes that pause it at once.
        """
        generation = self._dialogue.generate(**parameters)
        try:
            while (message := (await self._wait(generation)).take()) is not None:
                yield message
        finally:
            self.pause()
            while not generation.is_over:
                generation.messages.clear()
                await self._wait(generation)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what was made."""
        with suppress(ServerError):  # its reader hears of that
            self._dialogue.pause()

    def update(self, **sampling: Any) -> None:
        """Change how characters are chosen; see `Session.update`.

        Where values have no meaning and the next action is on its way already, gRPC may lose the server's sentence.
        """
        self._dialogue.update(sampling_of(sampling))

    async def snapshot(self) -> pb.InteractResponse.Snapshot:
        """The state as it is: a `resume_token` and its `position`."""
        snapshot: pb.InteractResponse.Snapshot = (await self._wait(self._dialogue.snapshot())).take()
        return snapshot

    async def close(self) -> None:
        """End the call, which frees the slot."""
        self._dialogue.ended(_closed())
        self._actions.put_nowait(None)  # gRPC lets nobody else end the loop over them when a call has ended by itself
        if self._call:
            self._call.cancel()
        if self._reading:
            await asyncio.wait([self._reading])

    async def _wait(self, awaited: Awaited) -> Awaited:
        """Read events until this is ready."""
        while not awaited.is_ready:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            await asyncio.shield(self._reading)
        return awaited

    async def _read(self) -> None:
        """The next event."""
        try:
            self._dialogue.received(await anext(self._events))
        except StopAsyncIteration:
            self._dialogue.ended(None)
        except grpc.RpcError as error:
            self._dialogue.ended(_reason(error))
        except asyncio.CancelledError:  # what gRPC raises where a call was cancelled
            self._dialogue.ended(_closed())

    async def __aenter__(self) -> Self:
        for stub in self._stubs:
            self._actions = asyncio.Queue()
            self._dialogue = Dialogue(self._actions.put_nowait)
            self._call = stub.Interact(_taken(self._actions), timeout=self._timeout)
            self._events = aiter(self._call)
            try:
                (await self._wait(self._dialogue.open(*self._beginning))).take()
                await self.snapshot()
                return self
            except BaseException as error:
                await self.close()
                if not self._may_try_another(stub, error):
                    raise
        raise AssertionError("there is at least one address")

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _reason(error: grpc.RpcError) -> ServerError:
    """Why a call ended. gRPC's asyncio half loses the server's status if an action could not be sent any more."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return ServerError(grpc.StatusCode.UNAVAILABLE, "the session ended while an action was on its way")
    return ServerError.of(error)


async def _taken(actions: asyncio.Queue[pb.InteractRequest | None]) -> AsyncIterator[pb.InteractRequest]:
    while (action := await actions.get()) is not None:
        yield action
