"""Clients of a Rill server: `Client` for ordinary programs, `AsyncClient` for asyncio.

    from serve.client import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.generate("To be", max_chars=400, temperature=0.8, seed=7):
            print(piece, end="", flush=True)

Needs grpcio and protobuf only. The command is `rill` (`serve.command`), also `python -m serve.client`.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

import grpc
import grpc.aio

from protos import rill_pb2 as pb
from protos.rill_pb2_grpc import TextGenerationStub


class ServerError(Exception):
    """The server ended a call with an error, or cannot be reached. `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


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
        chars_per_second=chars_per_second,
    )


class Client:
    """A client for `target`: "HOST:PORT", or several with commas between them, tried in turn until one is reached.

    Its methods raise ServerError. Safe to use from several threads; a context manager.
    """

    def __init__(self, target: str) -> None:
        self._channels = [grpc.insecure_channel(address) for address in _addresses(target)]

    def generate(self, prompt: str = "", *, timeout: float | None = None, **parameters: Any) -> Iterator[str]:
        """The pieces of a text as they arrive. `parameters` as for `generate_request`; `timeout` in seconds."""
        for message in self.stream(generate_request(prompt, **parameters), timeout=timeout):
            if message.text:
                yield message.text

    def stream(self, request: pb.GenerateRequest, *, timeout: float | None = None) -> Iterator[pb.GenerateResponse]:
        """The messages of a text. Closing the iterator cancels the call."""
        for channel in self._channels:
            call = TextGenerationStub(channel).Generate(request, timeout=timeout)
            started = False
            try:
                for message in call:
                    started = True
                    yield message
                return
            except grpc.RpcError as error:
                if started or not _is_unreachable(error) or channel is self._channels[-1]:
                    raise _server_error(error) from None
            finally:
                call.cancel()

    def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """What is served, and how busy the server is."""
        for channel in self._channels:
            try:
                response: pb.ListModelsResponse = TextGenerationStub(channel).ListModels(
                    pb.ListModelsRequest(), timeout=timeout
                )
                return response
            except grpc.RpcError as error:
                if not _is_unreachable(error) or channel is self._channels[-1]:
                    raise _server_error(error) from None
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

    def __init__(self, target: str) -> None:
        self._channels = [grpc.aio.insecure_channel(address) for address in _addresses(target)]

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
        """The messages of a text. Closing the iterator cancels the call."""
        for channel in self._channels:
            call = TextGenerationStub(channel).Generate(request, timeout=timeout)
            started = False
            try:
                async for message in call:
                    started = True
                    yield message
                return
            except grpc.RpcError as error:
                if started or not _is_unreachable(error) or channel is self._channels[-1]:
                    raise _server_error(error) from None
            finally:
                call.cancel()

    async def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """What is served, and how busy the server is."""
        for channel in self._channels:
            try:
                response: pb.ListModelsResponse = await TextGenerationStub(channel).ListModels(
                    pb.ListModelsRequest(), timeout=timeout
                )
                return response
            except grpc.RpcError as error:
                if not _is_unreachable(error) or channel is self._channels[-1]:
                    raise _server_error(error) from None
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


def _server_error(error: grpc.RpcError) -> ServerError:
    return ServerError(error.code(), error.details() or error.code().name)


if __name__ == "__main__":
    import sys

    from serve.command import main

    sys.exit(main())
