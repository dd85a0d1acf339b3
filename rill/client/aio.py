"""`AsyncClient` and `AsyncSession`: the clients of `rill.client.sync` for asyncio."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from rill.addresses import split_addresses
from rill.client import values
from rill.client.aio_lines import AsyncLineCalls
from rill.client.connection import CHANNEL_OPTIONS, Options
from rill.client.errors import ServerError, closed_error
from rill.client.exchange import Exchange
from rill.client.failover import Failover
from rill.client.interaction import InteractProtocol
from rill.client.lines import LineQueue
from rill.client.origin import REQUEST_ID
from rill.client.requests import (
    checked_id,
    generate_action,
    generate_request,
    open_action,
    sampling_message,
    score_request,
)
from rill.client.retry import RETRY_SECONDS, Attempts, FirstContact
from rill.client.samples import SampleCalls
from rill.client.scoring import Scoring
from rill.client.security import PLAIN, Security
from rill.client.session import CLOSE_SECONDS, SessionBase
from rill.client.steps import Generation, Reply
from rill.client.streams import AsyncLineScores, AsyncMessageStream, AsyncTextStream, end_call
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Answer = TypeVar("Answer")
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
        self._exchange = Exchange(protocol)
        self._wake: asyncio.Future[None] | None = None  # of `events`

    async def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read `text`; return the `logprob` that it gave it, in nats."""
        fed: pb.InteractResponse.Fed = (await self._wait(self._protocol.feed(values.text("text", text)))).take()
        return fed

    def generate(
        self,
        *,
        max_chars: int | None = None,
        stop: str | Iterable[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        chars_per_second: float = 0.0,
    ) -> AsyncTextStream:
        """Return the pieces of a text, up to its limit, a stop or `pause`; see `Session.generate`."""
        action = generate_action(max_chars, stop, include_stop, logprobs, chars_per_second)
        return AsyncTextStream(self._generated(action), self.pause, self.request_id)

    def stream(
        self,
        *,
        max_chars: int | None = None,
        stop: str | Iterable[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        chars_per_second: float = 0.0,
    ) -> AsyncMessageStream[pb.GenerateResponse]:
        """Return the messages of a text; see `Session.stream`."""
        action = generate_action(max_chars, stop, include_stop, logprobs, chars_per_second)
        return AsyncMessageStream(self._generated(action), self.pause, self.request_id)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what has arrived."""
        with suppress(ServerError):  # which the iterator raises
            self._protocol.pause()
        self._nudge.set()

    def update(
        self,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        logit_bias: Mapping[str, float] | None = None,
        regex: str | None = None,
        choices: Iterable[str] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        terminator: str | None = None,
        unconstrained: bool = False,
    ) -> None:
        """Change how characters are chosen; see `Session.update`."""
        sampling = sampling_message(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            logit_bias=logit_bias,
            regex=regex,
            choices=choices,
            json_schema=json_schema,
            terminator=terminator,
            unconstrained=unconstrained,
        )
        self._protocol.update(sampling)

    async def snapshot(self) -> pb.InteractResponse.Snapshot:
        """Return the state as it is: a `resume_token` and its `position`."""
        snapshot: pb.InteractResponse.Snapshot = (await self._wait(self._protocol.snapshot())).take()
        return snapshot

    def act(self, action: pb.InteractRequest) -> None:
        """Send a message of rill.v1, for programs that pass such messages on; its events come from `events`.

        Raises SessionStateError if it is out of order, and ServerError.
        """
        self._exchange.act(action)
        self._nudge.set()
        self._awake()

    @property
    def waiting(self) -> tuple[int, int]:
        """How many messages of `act` have no answer yet, and how many characters in them wait to be read."""
        return self._exchange.waiting, self._exchange.waiting_chars

    async def events(self) -> AsyncGenerator[pb.InteractResponse, None]:
        """Yield the events of the messages of `act`, as one call has them, whatever becomes of servers meanwhile.

        Raises ServerError when the session has ended, and SessionStateError for a message behind a pause.
        """
        while True:
            for event in self._exchange.events():
                yield event
            if self._protocol.error:
                raise self._protocol.error
            self._wake = asyncio.get_running_loop().create_future()
            self._read_on()
            await self._wake

    def _awake(self, _: object = None) -> None:
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def close(self) -> None:
        """End the call, which frees the slot: as the server's answer to the last action, unless it is generating."""
        is_idle = self._protocol.is_idle and (self._reading is None or self._reading.done())
        self._protocol.close()
        self._nudge.set()
        if call := self._call:
            # gRPC lets nobody else end the loop over the actions when a call has ended by itself.
            self._actions.put_nowait(None)
            try:
                if is_idle:
                    await _read_to_the_end(self._events)
            finally:
                end_call(call)
        if self._reading:
            await asyncio.wait([self._reading])

    async def _generated(self, action: pb.InteractRequest.Generate) -> AsyncGenerator[pb.GenerateResponse, None]:
        generation = self._protocol.generate(action)
        try:
            while (message := (await self._wait(generation)).take()) is not None:
                yield message
        finally:
            if not generation.is_over:
                self.pause()
            while not generation.is_over:
                generation.messages.clear()
                await self._wait(generation)

    async def _wait(self, awaited: Awaited) -> Awaited:
        """Handle events until this is ready."""
        while not awaited.is_ready:
            await asyncio.shield(self._read_on())
        return awaited

    def _read_on(self) -> asyncio.Task[None]:
        """Return the task that handles the next event."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._advance())
            self._reading.add_done_callback(self._awake)
        return self._reading

    async def _advance(self) -> None:
        """Handle the next event; between two calls, make the next one when its time has come, or return if nudged."""
        if self._call is None:
            self._nudge.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), max(self._retry_at - time.monotonic(), 0.0))
                return
            self._connect()
        try:
            self._protocol.received(_parsed(await anext(self._events)))
        except StopAsyncIteration:
            self._ended(None)
        except grpc.RpcError as error:
            self._ended(_reason(error))
        except ServerError as error:
            self._ended(error)
        except asyncio.CancelledError:  # what gRPC raises where a call was cancelled
            self._protocol.close()

    def _connect(self) -> None:
        actions: asyncio.Queue[pb.InteractRequest | None] = asyncio.Queue()
        stub, timeout = self._stubs[self._protocol.address], self._protocol.time_left()
        metadata = ((REQUEST_ID, self.request_id),)
        self._actions, self._call = actions, stub.Interact(_until_none(actions), timeout=timeout, metadata=metadata)
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


async def _read_to_the_end(events: AsyncIterator[pb.InteractResponse]) -> None:
    """Let a call whose last action was sent end by itself, for at most CLOSE_SECONDS."""
    with suppress(TimeoutError, grpc.RpcError):
        async with asyncio.timeout(CLOSE_SECONDS):
            async for _ in events:
                pass


def _reason(error: grpc.RpcError) -> ServerError:
    """Return why a call ended. gRPC for asyncio loses the server's status if an action could not be sent any more."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return ServerError(grpc.StatusCode.UNAVAILABLE, "the call ended while an action was on its way")
    return ServerError.from_rpc(error)


def _parsed(message: Answer | None) -> Answer:
    """Return an answer. gRPC for asyncio gives None where it could not be parsed, and the other gRPC an error: this."""
    if message is None:
        raise ServerError(grpc.StatusCode.INTERNAL, "Exception deserializing response!")
    return message


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

    def __init__(
        self,
        target: str,
        *,
        retry_seconds: float = RETRY_SECONDS,
        connect_seconds: float | None = None,
        begin_seconds: float | None = None,
        security: Security = PLAIN,
        channel_options: Options = (),
    ) -> None:
        """`channel_options` are further options of gRPC's channels; the others are those of `Client`."""
        self._retry_seconds = values.seconds("retry_seconds", retry_seconds)
        self._contact = FirstContact(connect_seconds, begin_seconds)
        self._closed = asyncio.Event()
        self._security, self._addresses = security, split_addresses(target)
        options = [*CHANNEL_OPTIONS, *channel_options]
        self._channels = [security.aio_channel(address, options) for address in self._addresses]
        self._stubs = [security.stub(channel) for channel in self._channels]

    def generate(
        self,
        prompt: str = "",
        *,
        model: str = "",
        max_chars: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        logit_bias: Mapping[str, float] | None = None,
        regex: str | None = None,
        choices: Iterable[str] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        terminator: str | None = None,
        unconstrained: bool = False,
        stop: str | Iterable[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        resume_token: bytes = b"",
        resume_every: int = 1024,
        chars_per_second: float = 0.0,
        timeout: float | None = None,
        request_id: str = "",
    ) -> AsyncTextStream:
        """Return the pieces of a text as they arrive; see `Client.generate` and `AsyncTextStream`."""
        request = generate_request(
            prompt,
            model=model,
            max_chars=max_chars,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            logit_bias=logit_bias,
            regex=regex,
            choices=choices,
            json_schema=json_schema,
            terminator=terminator,
            unconstrained=unconstrained,
            stop=stop,
            include_stop=include_stop,
            logprobs=logprobs,
            resume_token=resume_token,
            resume_every=resume_every,
            chars_per_second=chars_per_second,
        )
        calls = self._calls("Generate", self._text(request, timeout), request_id)
        return AsyncTextStream(calls.messages(), calls.cancel, calls.request_id)

    def stream(
        self,
        request: pb.GenerateRequest,
        *,
        timeout: float | None = None,
        request_id: str = "",
        instead: pb.GenerateRequest | None = None,
    ) -> AsyncMessageStream[pb.GenerateResponse]:
        """Return the messages of a text; see `generate`. A request without max_chars is sent as it is: endless.

        `instead` is for the same text without the token of `request`, for servers that do not know it.
        """
        text = self._text(request, timeout, instead)
        calls = self._calls("Generate", text, request_id)
        return AsyncMessageStream(calls.messages(), calls.cancel, calls.request_id, lambda: text.resume_point)

    def samples(
        self, request: pb.GenerateRequest, *, timeout: float | None = None, request_id: str = ""
    ) -> AsyncMessageStream[pb.GenerateResponse]:
        """Return messages with whole texts in `samples`: one for each of the `seeds` of the request, in their order.

        That is the text of a call with this seed alone, and costs a server far less. A call has up to 1,024 seeds. See
        rill.proto for what does not go with them. A server that does not know them is a ServerError, UNIMPLEMENTED.
        """
        samples = SampleCalls(request, *self._limits(timeout), contact=self._contact)
        calls = self._calls("Generate", samples, request_id)
        return AsyncMessageStream(calls.messages(), calls.cancel, calls.request_id)

    def score(
        self,
        text: str,
        *,
        model: str = "",
        resume_token: bytes = b"",
        top_logprobs: int | None = None,
        as_prompt: bool = False,
        include_end: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> AsyncMessageStream[pb.ScoreResponse]:
        """Return messages with the log-probabilities of the characters of `text` in nats, and a total on the last.

        The parameters are those of `Client.score`. Raises TypeError or ValueError.
        """
        request = score_request(text, model, resume_token, top_logprobs, as_prompt, include_end)
        score = Scoring(request, *self._limits(timeout), contact=self._contact)
        calls = self._calls("Score", score, request_id)
        return AsyncMessageStream(calls.messages(), calls.cancel, calls.request_id)

    def score_lines(
        self,
        lines: Iterable[str] | AsyncIterable[str],
        *,
        model: str = "",
        include_end: bool | None = None,
        timeout: float | None = None,
    ) -> AsyncLineScores:
        """Return how probable the model finds each line as a text of its own, in order; see `Client.score_lines`.

        Lines that have to be waited for come from an asynchronous iterable: a plain one would stop the event loop.
        """
        if include_end is not None:
            values.flag("include_end", include_end)
        queue = LineQueue(values.text("model", model), *self._limits(timeout), self._contact)
        calls = AsyncLineCalls(lines, queue, [stub.Score for stub in self._stubs], self._closed)
        scores = calls.scores(lambda: self.models(timeout=queue.time_left()), include_end)
        return AsyncLineScores(scores, calls.cancel)

    def interact(
        self,
        model: str = "",
        resume_token: bytes = b"",
        *,
        timeout: float | None = None,
        on_interrupted: Callable[[ServerError], None] | None = None,
        request_id: str = "",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        logit_bias: Mapping[str, float] | None = None,
        regex: str | None = None,
        choices: Iterable[str] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        terminator: str | None = None,
        unconstrained: bool = False,
    ) -> AsyncSession:
        """Return a live state on a server, which an async with statement opens; see `AsyncSession`.

        `timeout` is for the whole session, in seconds; None and infinity mean no limit. `on_interrupted` is called with
        the error of a server that is lost or full, before the session is opened elsewhere; it must not use it.
        `request_id` names the session's calls in the logs of servers. Raises TypeError or ValueError, with the
        parameter's name, for values that no server takes.
        """
        sampling = sampling_message(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            logit_bias=logit_bias,
            regex=regex,
            choices=choices,
            json_schema=json_schema,
            terminator=terminator,
            unconstrained=unconstrained,
        )
        opening = open_action(model, resume_token, sampling)
        return self.session(opening, timeout=timeout, on_interrupted=on_interrupted, request_id=request_id)

    def session(
        self,
        opening: pb.InteractRequest.Open,
        *,
        timeout: float | None = None,
        on_interrupted: Callable[[ServerError], None] | None = None,
        request_id: str = "",
    ) -> AsyncSession:
        """Return a live state that a message of rill.v1 opens, as it is; see `interact` and `AsyncSession.act`."""
        protocol = InteractProtocol(
            opening,
            *self._limits(timeout),
            contact=self._contact,
            on_interrupted=on_interrupted,
            request_id=checked_id(request_id),
        )
        return AsyncSession(self._stubs, protocol)

    async def models(self, *, timeout: float | None = None, request_id: str = "") -> pb.ListModelsResponse:
        """Return what is served, and how busy the server is. Raises ServerError."""
        metadata = ((REQUEST_ID, checked_id(request_id)),)
        attempts = Attempts(*self._limits(timeout), contact=self._contact)
        while True:
            ask = self._stubs[attempts.address].ListModels
            try:
                served: pb.ListModelsResponse = await ask(
                    pb.ListModelsRequest(), timeout=attempts.time_left(), metadata=metadata
                )
                attempts.progressed()
                return _parsed(served)
            except grpc.RpcError as error:
                failure = ServerError.from_rpc(error).told(metadata[0][1])
            await asyncio.sleep(attempts.failed(failure))
            if self._closed.is_set():
                raise closed_error()

    def with_token(self, token: str) -> "AsyncClient":
        """Return a client that sends this bearer token; see `Client.with_token`."""
        client = copy(self)
        client._security = self._security.with_token(token, self._addresses)
        client._stubs = [client._security.stub(channel) for channel in self._channels]
        return client

    @property
    def addresses(self) -> int:
        """How many servers `target` named."""
        return len(self._addresses)

    def at(self, *numbers: int) -> "AsyncClient":
        """Return a client of some of the servers of `target`, counted from 0. It shares the connections."""
        client = copy(self)
        for name in ("_addresses", "_channels", "_stubs"):
            setattr(client, name, [getattr(self, name)[number] for number in numbers])
        return client

    async def close(self) -> None:
        """Close the connections; calls in progress end."""
        self._closed.set()
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _text(
        self, request: pb.GenerateRequest, timeout: float | None, instead: pb.GenerateRequest | None = None
    ) -> Failover:
        if not isinstance(request, pb.GenerateRequest):
            raise TypeError(f"request must be a GenerateRequest, as `generate_request` returns, not {type(request)}")
        return Failover(request, *self._limits(timeout), contact=self._contact, instead=instead)

    def _limits(self, timeout: float | None) -> tuple[int, float, float | None]:
        return len(self._stubs), self._retry_seconds, values.timeout(timeout)

    def _calls(self, method: str, repeated: Failover | Scoring | SampleCalls, request_id: str) -> "_Calls":
        return _Calls([getattr(stub, method) for stub in self._stubs], repeated, checked_id(request_id), self._closed)


class _Calls:
    """The calls that one text or score takes, and the loop over them. It does not refer to the iterator of the user."""

    def __init__(
        self,
        methods: Sequence[Any],
        repeated: Failover | Scoring | SampleCalls,
        request_id: str,
        closed: asyncio.Event,
    ) -> None:
        self._methods, self._repeated, self.request_id, self._closed = methods, repeated, request_id, closed
        self._is_cancelled = asyncio.Event()
        self._call: Any = None

    async def messages(self) -> AsyncGenerator[Any, None]:
        """Yield the messages. Raises ServerError."""
        repeated, metadata = self._repeated, ((REQUEST_ID, self.request_id),)
        try:
            while (request := repeated.request()) is not None:
                if self._closed.is_set():
                    raise closed_error()
                method = self._methods[repeated.address]
                call = self._call = method(request, timeout=repeated.time_left(), metadata=metadata)
                error = None
                try:
                    async for message in call:
                        if (shown := repeated.received(_parsed(message))) is not None:
                            yield shown
                except grpc.RpcError as raised:
                    error = raised
                except asyncio.CancelledError:
                    if not self._is_ended_by_us():
                        raise
                finally:
                    end_call(call)
                if self._is_cancelled.is_set() or await self._is_cancelled_within(repeated.ended(error)):
                    return
            if (last := repeated.lost_end()) is not None:
                yield last
        except ServerError as failure:
            failure.told(self.request_id)
            raise

    def cancel(self) -> None:
        """End the loop, from another task."""
        self._is_cancelled.set()
        if self._call is not None:
            end_call(self._call)

    def _is_ended_by_us(self) -> bool:
        """Tell whether gRPC raised CancelledError because of `cancel`, and not because the task is cancelled."""
        task = asyncio.current_task()
        return self._is_cancelled.is_set() and not (task and task.cancelling())

    async def _is_cancelled_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._is_cancelled.wait(), seconds)
        return False
