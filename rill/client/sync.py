"""Clients of a Rill server: `Client` for ordinary programs, `AsyncClient` for asyncio.

    from rill import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.generate("To be", max_chars=400, temperature=0.8, seed=7):
            print(piece, end="", flush=True)

A stream that breaks is continued (`rill.client.failover`): the application sees every character once, whatever happens
to servers meanwhile. Needs grpcio and protobuf only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

import grpc
import grpc.aio

from rill.client.failover import Failover, ServerError
from rill.client.interaction import sampling_of
from rill.client.security import Security
from rill.client.sessions import AsyncSession, Beginning, Session
from rill.v1 import rill_pb2 as pb

__all__ = ["AsyncClient", "Client", "Security", "ServerError", "finish_reason", "generate_request"]

RETRY_SECONDS = 30.0
CHANNEL_OPTIONS = [
    # Each client has its own connections: where several processes share a port, each connection goes to one of them.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that was restarted is found soon: the default waits up to two minutes between attempts to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Despite its name, how long an attempt to connect may take; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that is gone says nothing: ask during calls, however quiet they are.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # where a ping is under way for other reasons, and keepalive sends none
    ("grpc.http2.max_pings_without_data", 0),
]
PLAIN = Security()


def generate_request(
    prompt: str = "",
    *,
    model: str = "",
    max_chars: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    logit_bias: Mapping[str, float] | None = None,
    stop: Sequence[str] = (),
    include_stop: bool = False,
    logprobs: int | None = None,
    resume_token: bytes = b"",
    resume_every: int = 1024,
    chars_per_second: float = 0.0,
) -> pb.GenerateRequest:
    """The request for a text; every parameter is described in rill.proto, None leaves it to the server.

    Raises ValueError for what no message can hold: a negative seed, say.
    """
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return pb.GenerateRequest(
        model=model,
        prompt=prompt,
        max_chars=max_chars,
        sampling=pb.Sampling(
            logit_bias=logit_bias, **{name: value for name, value in given.items() if value is not None}
        ),
        stop=stop,
        include_stop=include_stop,
        logprobs=logprobs,
        resume_token=resume_token,
        resume_every=resume_every,
        chars_per_second=chars_per_second,
    )


def finish_reason(number: int) -> str:
    """LENGTH, STOP or DRAINING; of one that only newer servers know, its number."""
    known = pb.FinishReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("FINISH_REASON_") if known else str(number)


class Client:
    """A client for `target`: "HOST:PORT", or several with commas between them, tried in turn until one is reached.

    A stream that breaks after it began is continued, for up to `retry_seconds` without a new character; 0: not at all.
    Methods raise ServerError. Safe to use from several threads; a context manager.

        Client("text.example.com:50051", security=Security(tls=True, token="..."))
    """

    def __init__(self, target: str, *, retry_seconds: float = RETRY_SECONDS, security: Security = PLAIN) -> None:
        self._retry_seconds = _seconds(retry_seconds)
        self._channels = [security.channel(address, CHANNEL_OPTIONS) for address in _addresses(target)]
        self._stubs = [security.stub(channel) for channel in self._channels]

    def generate(self, prompt: str = "", *, timeout: float | None = None, **parameters: Any) -> Iterator[str]:
        """The pieces of a text as they arrive. `parameters` as for `generate_request`; `timeout` in seconds."""
        for message in self.stream(generate_request(prompt, **parameters), timeout=timeout):
            if message.text:
                yield message.text

    def stream(self, request: pb.GenerateRequest, *, timeout: float | None = None) -> Iterator[pb.GenerateResponse]:
        """The messages of a text; `timeout` is for all of it. Closing the iterator cancels the call."""
        text = Failover(request, len(self._stubs), self._retry_seconds, timeout)
        while (asked := text.request()) is not None:
            call = self._stubs[text.address].Generate(asked, timeout=text.time_left())
            error = None
            try:
                for message in call:
                    if (shown := text.received(message)) is not None:
                        yield shown
            except grpc.RpcError as raised:
                error = raised
            finally:
                call.cancel()
            time.sleep(text.ended(error))
        if (shown := text.lost_end()) is not None:
            yield shown

    def score(
        self, text: str, *, model: str = "", resume_token: bytes = b"", timeout: float | None = None
    ) -> Iterator[pb.ScoreResponse]:
        """The log-probabilities of the characters of `text` as they come, and last the total; see rill.proto.

        The next address is tried if one cannot be reached; what breaks after the first message is not repeated.
        """
        request = pb.ScoreRequest(model=model, resume_token=resume_token, text=text)
        for stub in self._stubs:
            call, message = stub.Score(request, timeout=timeout), None
            try:
                for message in call:
                    yield message
                return
            except grpc.RpcError as error:
                if message or not _is_unreachable(error) or stub is self._stubs[-1]:
                    raise ServerError.of(error) from None
            finally:
                call.cancel()

    def interact(
        self, model: str = "", resume_token: bytes = b"", *, timeout: float | None = None, **sampling: Any
    ) -> Session:
        """A live state on the server, to be used in a with statement, which opens it; see `sessions`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. The next address is tried if one cannot be
        reached; a session whose server ends is over. `timeout` is for all of it.
        """
        return Session(self._stubs, Beginning(model, resume_token, sampling_of(sampling)), timeout)

    def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """What is served, and how busy the server is."""
        for stub in self._stubs:
            try:
                response: pb.ListModelsResponse = stub.ListModels(pb.ListModelsRequest(), timeout=timeout)
                return response
            except grpc.RpcError as error:
                if not _is_unreachable(error) or stub is self._stubs[-1]:
                    raise ServerError.of(error) from None
        raise AssertionError("there is at least one channel")

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio: the same methods, asynchronous. Make and use it on one event loop."""

    def __init__(self, target: str, *, retry_seconds: float = RETRY_SECONDS, security: Security = PLAIN) -> None:
        self._retry_seconds = _seconds(retry_seconds)
        self._channels = [security.aio_channel(address, CHANNEL_OPTIONS) for address in _addresses(target)]
        self._stubs = [security.stub(channel) for channel in self._channels]

    async def generate(
        self, prompt: str = "", *, timeout: float | None = None, **parameters: Any
    ) -> AsyncIterator[str]:
        """The pieces of a text as they arrive. `parameters` as for `generate_request`; `timeout` in seconds."""
        async for message in self.stream(generate_request(prompt, **parameters), timeout=timeout):
            if message.text:
                yield message.text

    async def stream(
        self, request: pb.GenerateRequest, *, timeout: float | None = None
    ) -> AsyncIterator[pb.GenerateResponse]:
        """The messages of a text; `timeout` is for all of it. Closing the iterator cancels the call."""
        text = Failover(request, len(self._stubs), self._retry_seconds, timeout)
        while (asked := text.request()) is not None:
            call = self._stubs[text.address].Generate(asked, timeout=text.time_left())
            error = None
            try:
                async for message in call:
                    if (shown := text.received(message)) is not None:
                        yield shown
            except grpc.RpcError as raised:
                error = raised
            finally:
                call.cancel()
            await asyncio.sleep(text.ended(error))
        if (shown := text.lost_end()) is not None:
            yield shown

    async def score(
        self, text: str, *, model: str = "", resume_token: bytes = b"", timeout: float | None = None
    ) -> AsyncIterator[pb.ScoreResponse]:
        """The log-probabilities of the characters of `text` as they come, and last the total; see rill.proto.

        The next address is tried if one cannot be reached; what breaks after the first message is not repeated.
        """
        request = pb.ScoreRequest(model=model, resume_token=resume_token, text=text)
        for stub in self._stubs:
            call, message = stub.Score(request, timeout=timeout), None
            try:
                async for message in call:
                    yield message
                return
            except grpc.RpcError as error:
                if message or not _is_unreachable(error) or stub is self._stubs[-1]:
                    raise ServerError.of(error) from None
            finally:
                call.cancel()

    def interact(
        self, model: str = "", resume_token: bytes = b"", *, timeout: float | None = None, **sampling: Any
    ) -> AsyncSession:
        """A live state on the server, to be used in an async with statement, which opens it; see `sessions`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. The next address is tried if one cannot be
        reached; a session whose server ends is over. `timeout` is for all of it.
        """
        return AsyncSession(self._stubs, Beginning(model, resume_token, sampling_of(sampling)), timeout)

    async def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """What is served, and how busy the server is."""
        for stub in self._stubs:
            try:
                response: pb.ListModelsResponse = await stub.ListModels(pb.ListModelsRequest(), timeout=timeout)
                return response
            except grpc.RpcError as error:
                if not _is_unreachable(error) or stub is self._stubs[-1]:
                    raise ServerError.of(error) from None
        raise AssertionError("there is at least one channel")

    async def close(self) -> None:
        """Close the connections; calls in progress end."""
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _addresses(target: str) -> list[str]:
    addresses = [address.strip() for address in target.split(",")]
    if not all(addresses):
        raise ValueError(f"target must be HOST:PORT or several with commas between them, not {target!r}")
    return addresses


def _is_unreachable(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE


def _seconds(retry_seconds: float) -> float:
    if not retry_seconds >= 0:
        raise ValueError(f"retry_seconds must be a number of at least 0, not {retry_seconds}")
    return retry_seconds
