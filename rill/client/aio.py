"""`AsyncClient` and `AsyncSession`: the clients of `rill.client.sync` for asyncio."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from rill.addresses import split_addresses
from rill.client.connection import CHANNEL_OPTIONS
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.interaction import InteractProtocol
from rill.client.requests import generate_request, sampling_message
from rill.client.retry import RETRY_SECONDS, Attempts, checked_retry_seconds
from rill.client.scoring import Scoring
from rill.client.security import PLAIN, Security
from rill.client.session import SessionBase
from rill.client.steps import Generation, Reply
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Awaited = TypeVar("Awaited", Reply, Generation)


class AsyncSession(SessionBase):
    """`Session` for asyncio: what waits there is asynchronous here. Cancelling what waits does not end the session.

    async with AsyncClient("127.0.0.1:50051") as client, client.interact(temperature=0.7, seed=7) as session:
        await session.feed("ROMEO:")
        async for piece in session.generate(max_chars=400):
            print(piece, end="", flush=True)
    """

    def __init__(self, stubs: Sequence[TextGenerationStub], protocol: InteractProtocol) -> None:
        self._stubs, self._protocol = stubs, protocol
        self._call: Any = None  # None between two calls
        self._events: AsyncIterator[pb.InteractResponse]  # not `read`, which stops where a last action cannot be sent
        self._retry_at = 0.0
        self._reading: asyncio.Task[None] | None = None  # of the next event, for all that wait
        self._nudge = asyncio.Event()

    async def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read `text`; return the `logprob` that it gave it, in nats."""
        fed: pb.InteractResponse.Fed = (await self._wait(self._protocol.feed(text))).take()
        return fed

    async def generate(self, **parameters: Any) -> AsyncGenerator[str, None]:
        """Yield the pieces of a text as they arrive, up to its limit, a stop or `pause`. Parameters as for `stream`."""
        async with aclosing(self.stream(**parameters)) as messages:
            async for message in messages:
                if message.text:
                    yield message.text

    async def stream(self, **parameters: Any) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Yield the messages of a text, which begins when the first is asked for; see `Session.stream`.

        Where a loop over it may be left early, `contextlib.aclosing` pauses the text at once.
        """
        generation = self._protocol.generate(**parameters)
        try:
            while (message := (await self._wait(generation)).take()) is not None:
                yield message
        finally:
            self.pause()
            while not generation.is_over:
                generation.messages.clear()
                await self._wait(generation)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what has arrived."""
        with suppress(ServerError):  # which the iterator raises
            self._protocol.pause()
        self._nudge.set()

    def update(self, **sampling: Any) -> None:
        """Change how characters are chosen; see `Session.update`."""
        self._protocol.update(sampling_message(sampling))

    async def snapshot(self) -> pb.InteractResponse.Snapshot:
        """Return the state as it is: a `resume_token` and its `position`."""
        snapshot: pb.InteractResponse.Snapshot = (await self._wait(self._protocol.snapshot())).take()
        return snapshot

    async def close(self) -> None:
        """End the call, which frees the slot."""
        self._protocol.close()
        self._nudge.set()
        if self._call:
            # gRPC lets nobody else end the loop over the actions when a call has ended by itself.
            self._actions.put_nowait(None)
            self._call.cancel()
        if self._reading:
            await asyncio.wait([self._reading])

    async def _wait(self, awaited: Awaited) -> Awaited:
        """Handle events until this is ready."""
        while not awaited.is_ready:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._advance())
            await asyncio.shield(self._reading)
        return awaited

    async def _advance(self) -> None:
        """Handle the next event; between two calls, make the next one when its time has come, or return if nudged."""
        if self._call is None:
            self._nudge.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), max(self._retry_at - time.monotonic(), 0.0))
                return
            self._connect()
        try:
            self._protocol.received(await anext(self._events))
        except StopAsyncIteration:
            self._ended(None)
        except grpc.RpcError as error:
            self._ended(_reason(error))
        except asyncio.CancelledError:  # what gRPC raises where a call was cancelled
            self._protocol.close()

    def _connect(self) -> None:
        actions: asyncio.Queue[pb.InteractRequest | None] = asyncio.Queue()
        stub, timeout = self._stubs[self._protocol.address], self._protocol.time_left()
        self._actions, self._call = actions, stub.Interact(_until_none(actions), timeout=timeout)
        self._events = aiter(self._call)
        self._protocol.connected(actions.put_nowait)

    def _ended(self, error: ServerError | None) -> None:
        self._actions.put_nowait(None)
        self._call = None
        if (delay := self._protocol.ended(error)) is not None:
            self._retry_at = time.monotonic() + delay

    async def __aenter__(self) -> Self:
        try:
            (await self._wait(self._protocol.open())).take()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _reason(error: grpc.RpcError) -> ServerError:
    """Return why a call ended. gRPC for asyncio loses the server's status if an action could not be sent any more."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return ServerError(grpc.StatusCode.UNAVAILABLE, "the call ended while an action was on its way")
    return ServerError.from_rpc(error)


async def _until_none(actions: asyncio.Queue[pb.InteractRequest | None]) -> AsyncIterator[pb.InteractRequest]:
    while (action := await actions.get()) is not None:
        yield action


class AsyncClient:
    """`Client` for asyncio: the same methods, asynchronous. Create and use it on one event loop.

        async with AsyncClient("10.0.0.5:50051,10.0.0.6:50051") as client:
            async for piece in client.generate("To be", max_chars=400, seed=7):
                print(piece, end="", flush=True)

    Where a loop over an iterator may be left early, `contextlib.aclosing` cancels its call at once.
    """

    def __init__(self, target: str, *, retry_seconds: float = RETRY_SECONDS, security: Security = PLAIN) -> None:
        self._retry_seconds = checked_retry_seconds(retry_seconds)
        self._channels = [security.aio_channel(address, CHANNEL_OPTIONS) for address in split_addresses(target)]
        self._stubs = [security.stub(channel) for channel in self._channels]

    async def generate(
        self, prompt: str = "", *, timeout: float | None = None, **parameters: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the pieces of a text as they arrive.

        `parameters` are those of `generate_request`, which raises ValueError; `timeout` is for the whole text, in
        seconds. Raises ServerError. Closing the iterator cancels the call.
        """
        async with aclosing(self.stream(generate_request(prompt, **parameters), timeout=timeout)) as messages:
            async for message in messages:
                if message.text:
                    yield message.text

    def stream(
        self, request: pb.GenerateRequest, *, timeout: float | None = None
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Return the messages of a text; see `generate`."""
        return self._messages("Generate", Failover(request, len(self._stubs), self._retry_seconds, timeout))

    def score(
        self, text: str, *, model: str = "", resume_token: bytes = b"", timeout: float | None = None
    ) -> AsyncGenerator[pb.ScoreResponse, None]:
        """Return messages with the log-probabilities of the characters of `text` in nats, and a total on the last.

        Raises ServerError. Closing the iterator cancels the call.
        """
        request = pb.ScoreRequest(model=model, resume_token=resume_token, text=text)
        return self._messages("Score", Scoring(request, len(self._stubs), self._retry_seconds, timeout))

    def interact(
        self,
        model: str = "",
        resume_token: bytes = b"",
        *,
        timeout: float | None = None,
        on_interrupted: Callable[[ServerError], None] | None = None,
        **sampling: Any,
    ) -> AsyncSession:
        """Return a live state on a server, which an async with statement opens; see `AsyncSession`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. `timeout` is for the whole session, in seconds.
        `on_interrupted` is called with the error of a server that is lost, before the session is reopened elsewhere;
        it must not use the session. Raises ValueError for parameters that no message can hold.
        """
        protocol = InteractProtocol(
            pb.InteractRequest.Open(model=model, resume_token=resume_token, sampling=sampling_message(sampling)),
            len(self._stubs),
            self._retry_seconds,
            timeout,
            on_interrupted=on_interrupted,
        )
        return AsyncSession(self._stubs, protocol)

    async def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """Return what is served, and how busy the server is. Raises ServerError."""
        attempts = Attempts(len(self._stubs), timeout=timeout)
        while True:
            ask = self._stubs[attempts.address].ListModels
            try:
                served: pb.ListModelsResponse = await ask(pb.ListModelsRequest(), timeout=attempts.time_left())
                return served
            except grpc.RpcError as error:
                failure = ServerError.from_rpc(error)
            attempts.failed(failure)

    async def close(self) -> None:
        """Close the connections; calls in progress end."""
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _messages(self, method: str, repeated: Failover | Scoring) -> AsyncGenerator[Any, None]:
        while (request := repeated.request()) is not None:
            call = getattr(self._stubs[repeated.address], method)(request, timeout=repeated.time_left())
            error = None
            try:
                async for message in call:
                    if (shown := repeated.received(message)) is not None:
                        yield shown
            except grpc.RpcError as raised:
                error = raised
            finally:
                call.cancel()
            await asyncio.sleep(repeated.ended(error))
        if (last := repeated.lost_end()) is not None:
            yield last
