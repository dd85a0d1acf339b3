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
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from typing import Any, Self, TypeVar

import grpc

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
        self, model: str = "", resume_token: bytes = b"", *, timeout: float | None = None, **sampling: Any
    ) -> Session:
        """Return a live state on a server, which a with statement opens; see `Session`.

        `sampling`: temperature, top_k, top_p, min_p, seed, logit_bias. `timeout` is for the whole session, in seconds.
        Raises ValueError for parameters that no message can hold.
        """
        return Session(self._stubs, Beginning(model, resume_token, sampling_message(sampling)), timeout)

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
