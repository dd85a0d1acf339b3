"""`Client` and `Session`, for ordinary programs. Needs grpcio and protobuf only.

    from rill import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.generate("To be", max_chars=400, temperature=0.8, seed=7):
            print(piece, end="", flush=True)

A stream that breaks is continued (`rill.client.failover`): the application sees every character once.
"""

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Self, TypeVar

import grpc

from rill.addresses import split_addresses
from rill.client.connection import CHANNEL_OPTIONS
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.interaction import Generation, InteractProtocol, Reply
from rill.client.requests import generate_request, sampling_message
from rill.client.retry import RETRY_SECONDS, checked_seconds, is_away
from rill.client.security import PLAIN, Security
from rill.client.session import Beginning, SessionBase, closed_error
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Awaited = TypeVar("Awaited", Reply, Generation)


class Session(SessionBase):
    """One live state, in a slot of the server's for as long as the with statement lasts.

    Methods raise ServerError when the call has ended. `feed` and `generate` raise SessionStateError, which changes
    nothing, while the model generates. Other threads may use a session too, to `pause` it for example.
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
            self._dialogue.update(sampling_message(sampling))

    def snapshot(self) -> pb.InteractResponse.Snapshot:
        """The state as it is: a `resume_token` and its `position`."""
        with self._changed:
            answer = self._dialogue.snapshot()
        snapshot: pb.InteractResponse.Snapshot = self._wait(answer).take()
        return snapshot

    def close(self) -> None:
        """End the call, which frees the slot."""
        with self._changed:
            self._dialogue.ended(closed_error())
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
            return None, ServerError.from_rpc(error)
        except BaseException:  # Ctrl-C: gRPC would lose the event that it waits for
            self.close()
            raise

    def __enter__(self) -> Self:
        for stub in self._stubs:
            self._actions = queue.SimpleQueue()
            self._dialogue = InteractProtocol(self._actions.put)
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


class Client:
    """A client for `target`: "HOST:PORT", or several with commas between them, tried in turn until one is reached.

    A stream that breaks after it began is continued, for up to `retry_seconds` without a new character; 0: not at all.
    Methods raise ServerError. Safe to use from several threads; a context manager.

        Client("text.example.com:50051", security=Security(tls=True, token="..."))
    """

    def __init__(self, target: str, *, retry_seconds: float = RETRY_SECONDS, security: Security = PLAIN) -> None:
        self._retry_seconds = checked_seconds(retry_seconds)
        self._channels = [security.channel(address, CHANNEL_OPTIONS) for address in split_addresses(target)]
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
            except grpc.RpcError as raised:
                error = ServerError.from_rpc(raised)
                if message or not is_away(error) or stub is self._stubs[-1]:
                    raise error from None
            finally:
                call.cancel()

    def interact(
        self, model: str = "", resume_token: bytes = b"", *, timeout: float | None = None, **sampling: Any
    ) -> Session:
        """A live state on the server, to be used in a with statement, which opens it; see `sessions`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. The next address is tried if one cannot be
        reached; a session whose server ends is over. `timeout` is for all of it.
        """
        return Session(self._stubs, Beginning(model, resume_token, sampling_message(sampling)), timeout)

    def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """What is served, and how busy the server is."""
        for stub in self._stubs:
            try:
                response: pb.ListModelsResponse = stub.ListModels(pb.ListModelsRequest(), timeout=timeout)
                return response
            except grpc.RpcError as raised:
                error = ServerError.from_rpc(raised)
                if not is_away(error) or stub is self._stubs[-1]:
                    raise error from None
        raise AssertionError("there is at least one channel")

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
