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
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from typing import Any, Self, TypeVar

import grpc

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


class Session(SessionBase):
    """One live state, in a slot of a server for as long as the with statement lasts.

        with Client("127.0.0.1:50051") as client, client.interact(temperature=0.7, seed=7) as session:
            session.feed("ROMEO:")
            for piece in session.generate(max_chars=400):
                print(piece, end="", flush=True)
            token = session.resume_token

    When its server drains or dies, the session is reopened from the last token, at the next address or at the same one
    when that is back, for up to `retry_seconds` of the client; what followed the token is repeated, and the application
    sees every character once. Methods raise ServerError if that is not possible; its `resume_token` is the last state.
    `feed` and `generate` raise SessionStateError, which changes nothing, while the model generates. Other threads may
    use a session too, to `pause` it for example. Events are read when a method waits for one: a slow reader keeps the
    server from running far ahead.
    """

    def __init__(self, stubs: Sequence[TextGenerationStub], protocol: InteractProtocol) -> None:
        self._stubs, self._protocol = stubs, protocol
        self._call: Any = None  # None between two calls
        self._retry_at = 0.0
        self._changed = threading.Condition()
        self._is_reading = False  # in one thread, for all

    def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read `text`; return the `logprob` that it gave it, in nats."""
        with self._changed:
            reply = self._protocol.feed(text)
        fed: pb.InteractResponse.Fed = self._wait(reply).take()
        return fed

    def generate(self, **parameters: Any) -> Generator[str, None, None]:
        """Yield the pieces of a text as they arrive, up to its limit, a stop or `pause`. Parameters as for `stream`."""
        with closing(self.stream(**parameters)) as messages:
            for message in messages:
                if message.text:
                    yield message.text

    def stream(self, **parameters: Any) -> Generator[pb.GenerateResponse, None, None]:
        """Yield the messages of a text, which begins when the first is asked for.

        `parameters`: max_chars, stop, include_stop, logprobs and chars_per_second, as in rill.proto. An iterator that
        is left early pauses the text; what was generated and not taken belongs to it all the same.
        """
        with self._changed:
            generation = self._protocol.generate(**parameters)
        try:
            while (message := self._wait(generation).take()) is not None:
                yield message
        finally:
            self.pause()
            while not generation.is_over:
                generation.messages.clear()
                self._wait(generation)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what has arrived."""
        with self._changed, suppress(ServerError):  # which the iterator raises
            self._protocol.pause()
            self._changed.notify_all()

    def update(self, **sampling: Any) -> None:
        """Change temperature, top_k, top_p, min_p, seed or logit_bias, for the characters to come.

        The server does not answer. Values without meaning end the session with a ServerError, which the next `feed` or
        text raises; a snapshot that is requested right behind them may be of the state before.
        """
        with self._changed:
            self._protocol.update(sampling_message(sampling))

    def snapshot(self) -> pb.InteractResponse.Snapshot:
        """Return the state as it is: a `resume_token` and its `position`."""
        with self._changed:
            reply = self._protocol.snapshot()
        snapshot: pb.InteractResponse.Snapshot = self._wait(reply).take()
        return snapshot

    def close(self) -> None:
        """End the call, which frees the slot."""
        with self._changed:
            self._protocol.close()
            self._changed.notify_all()
            if self._call:
                self._actions.put(None)
                self._call.cancel()

    def _wait(self, awaited: Awaited) -> Awaited:
        """Handle events, or let another thread handle them, until this is ready."""
        with self._changed:
            while not awaited.is_ready:
                if self._is_reading:
                    self._changed.wait()
                    continue
                self._is_reading = True
                try:
                    self._advance(awaited)
                finally:
                    self._is_reading = False
                    self._changed.notify_all()
        return awaited

    def _advance(self, awaited: Awaited) -> None:
        """Handle the next event; between two calls, make the next one when its time has come. With the lock."""
        if self._call is None:
            delay = max(self._retry_at - time.monotonic(), 0.0)
            if not self._changed.wait_for(lambda: awaited.is_ready, delay):
                self._connect()
            return
        self._changed.release()
        try:
            event, error = self._next()
        finally:
            self._changed.acquire()
        if event is not None:
            self._protocol.received(event)
            return
        self._actions.put(None)
        self._call = None
        if (delay_or_none := self._protocol.ended(error)) is not None:
            self._retry_at = time.monotonic() + delay_or_none

    def _next(self) -> tuple[pb.InteractResponse | None, ServerError | None]:
        """Return the next event, or None and why there are no more."""
        try:
            return next(self._call, None), None
        except grpc.RpcError as error:
            return None, ServerError.from_rpc(error)
        except BaseException:  # Ctrl-C: gRPC would lose the event that it waits for
            self.close()
            raise

    def _connect(self) -> None:
        self._actions = actions = queue.SimpleQueue[pb.InteractRequest | None]()
        stub, timeout = self._stubs[self._protocol.address], self._protocol.time_left()
        self._call = stub.Interact(iter(actions.get, None), timeout=timeout)
        self._protocol.connected(actions.put)

    def __enter__(self) -> Self:
        try:
            with self._changed:
                opened = self._protocol.open()
            self._wait(opened).take()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """A client for `target`: "HOST:PORT", or several separated by commas, called in turn until one answers.

        with Client("10.0.0.5:50051,10.0.0.6:50051", security=Security(tls=True, token="...")) as client:
            print("".join(client.generate("To be", max_chars=400, seed=7)))

    A call that finds its server down or draining is made at the next address. Once something was received, calls are
    repeated for up to `retry_seconds` without progress (0: never), and the application sees everything once. The
    constructor raises ValueError for addresses and numbers that make no sense. Methods raise ServerError if no server
    can be reached or one refuses the call, with code DATA_LOSS if the servers' answers contradict each other.
    A client may be used by several threads, and as a context manager.
    """

    def __init__(self, target: str, *, retry_seconds: float = RETRY_SECONDS, security: Security = PLAIN) -> None:
        self._retry_seconds = checked_retry_seconds(retry_seconds)
        self._channels = [security.channel(address, CHANNEL_OPTIONS) for address in split_addresses(target)]
        self._stubs = [security.stub(channel) for channel in self._channels]

    def generate(
        self, prompt: str = "", *, timeout: float | None = None, **parameters: Any
    ) -> Generator[str, None, None]:
        """Yield the pieces of a text as they arrive.

        `parameters` are those of `generate_request`, which raises ValueError; `timeout` is for the whole text, in
        seconds. Raises ServerError. Closing the iterator cancels the call.
        """
        with closing(self.stream(generate_request(prompt, **parameters), timeout=timeout)) as messages:
            for message in messages:
                if message.text:
                    yield message.text

    def stream(
        self, request: pb.GenerateRequest, *, timeout: float | None = None
    ) -> Generator[pb.GenerateResponse, None, None]:
        """Return the messages of a text; see `generate`."""
        return self._messages("Generate", Failover(request, len(self._stubs), self._retry_seconds, timeout))

    def score(
        self, text: str, *, model: str = "", resume_token: bytes = b"", timeout: float | None = None
    ) -> Generator[pb.ScoreResponse, None, None]:
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
    ) -> Session:
        """Return a live state on a server, which a with statement opens; see `Session`.

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
        return Session(self._stubs, protocol)

    def models(self, *, timeout: float | None = None) -> pb.ListModelsResponse:
        """Return what is served, and how busy the server is. Raises ServerError."""
        attempts = Attempts(len(self._stubs), timeout=timeout)
        while True:
            ask = self._stubs[attempts.address].ListModels
            try:
                served: pb.ListModelsResponse = ask(pb.ListModelsRequest(), timeout=attempts.time_left())
                return served
            except grpc.RpcError as error:
                failure = ServerError.from_rpc(error)
            attempts.failed(failure)

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _messages(self, method: str, repeated: Failover | Scoring) -> Generator[Any, None, None]:
        while (request := repeated.request()) is not None:
            call = getattr(self._stubs[repeated.address], method)(request, timeout=repeated.time_left())
            error = None
            try:
                for message in call:
                    if (shown := repeated.received(message)) is not None:
                        yield shown
            except grpc.RpcError as raised:
                error = raised
            finally:
                call.cancel()
            time.sleep(repeated.ended(error))
        if (last := repeated.lost_end()) is not None:
            yield last
