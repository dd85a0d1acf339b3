"""`AsyncClient` and `AsyncSession`: the clients of `rill.client.sync` for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from rill.addresses import split_addresses
from rill.client.connection import CHANNEL_OPTIONS
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.interaction import Generation, InteractProtocol, Reply
from rill.client.requests import generate_request, sampling_message
from rill.client.retry import RETRY_SECONDS, Attempts, checked_retry_seconds
from rill.client.scoring import Scoring
from rill.client.security import PLAIN, Security
from rill.client.session import Beginning, SessionBase, closed_error
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Awaited = TypeVar("Awaited", Reply, Generation)


class AsyncSession(SessionBase):
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
        self._dialogue.update(sampling_message(sampling))

    async def snapshot(self) -> pb.InteractResponse.Snapshot:
        """The state as it is: a `resume_token` and its `position`."""
        snapshot: pb.InteractResponse.Snapshot = (await self._wait(self._dialogue.snapshot())).take()
        return snapshot

    async def close(self) -> None:
        """End the call, which frees the slot."""
        self._dialogue.ended(closed_error())
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
            self._dialogue.ended(closed_error())

    async def __aenter__(self) -> Self:
        for stub in self._stubs:
            self._actions = asyncio.Queue()
            self._dialogue = InteractProtocol(self._actions.put_nowait)
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
    return ServerError.from_rpc(error)


async def _taken(actions: asyncio.Queue[pb.InteractRequest | None]) -> AsyncIterator[pb.InteractRequest]:
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
        self, model: str = "", resume_token: bytes = b"", *, timeout: float | None = None, **sampling: Any
    ) -> AsyncSession:
        """Return a live state on a server, which an async with statement opens; see `AsyncSession`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. `timeout` is for the whole session, in seconds.
        Raises ValueError for parameters that no message can hold.
        """
        return AsyncSession(self._stubs, Beginning(model, resume_token, sampling_message(sampling)), timeout)

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
