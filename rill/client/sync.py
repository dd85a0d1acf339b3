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
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Self, TypeVar

import grpc

from rill.addresses import split_addresses
from rill.client import values
from rill.client.connection import CHANNEL_OPTIONS
from rill.client.errors import ServerError, closed_error
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
from rill.client.streams import LineScores, MessageStream, TextStream, end_call
from rill.client.sync_lines import LineCalls
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
            reply = self._protocol.feed(values.text("text", text))
        fed: pb.InteractResponse.Fed = self._wait(reply).take()
        return fed

    def generate(
        self,
        *,
        max_chars: int | None = None,
        stop: str | Iterable[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        chars_per_second: float = 0.0,
    ) -> TextStream:
        """Return the pieces of a text, up to its limit, a stop or `pause`; see `TextStream` and rill.proto.

        It begins when the first piece is asked for; closing it pauses the text. A `max_chars` of None is 400, and 0 is
        endless. Raises TypeError or ValueError, with the parameter's name, for values that no server takes.
        """
        action = generate_action(max_chars, stop, include_stop, logprobs, chars_per_second)
        return TextStream(self._generated(action), self.pause, self.request_id)

    def stream(
        self,
        *,
        max_chars: int | None = None,
        stop: str | Iterable[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        chars_per_second: float = 0.0,
    ) -> MessageStream[pb.GenerateResponse]:
        """Return the messages of a text; see `generate`.

        What was generated and not taken, when the iterator is closed, belongs to the text all the same.
        """
        action = generate_action(max_chars, stop, include_stop, logprobs, chars_per_second)
        return MessageStream(self._generated(action), self.pause, self.request_id)

    def pause(self) -> None:
        """End the text that is being generated, if one is, where it is: its iterator ends after what has arrived."""
        with self._changed, suppress(ServerError):  # which the iterator raises
            self._protocol.pause()
            self._changed.notify_all()

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
        """Change how the characters to come are chosen; None leaves a parameter as it is.

        A `regex`, `choices` or `json_schema` begins with the next character, also where it is the one before again, and
        `unconstrained` removes it; the texts of `generate` continue it until then, whatever is fed in between.
        The server does not answer. Values that it refuses end the session with a ServerError, which the next `feed` or
        text raises; a snapshot that is requested right behind them may be of the state before. Raises TypeError or
        ValueError for values that no server takes, which change nothing.
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
        with self._changed:
            self._protocol.update(sampling)

    def snapshot(self) -> pb.InteractResponse.Snapshot:
        """Return the state as it is: a `resume_token` and its `position`."""
        with self._changed:
            reply = self._protocol.snapshot()
        snapshot: pb.InteractResponse.Snapshot = self._wait(reply).take()
        return snapshot

    def close(self) -> None:
        """End the call, which frees the slot: as the server's answer to the last action, unless it is generating."""
        with self._changed:
            is_idle = self._protocol.is_idle and not self._is_reading
            self._protocol.close()
            self._changed.notify_all()
            call = self._call
            if not call:
                return
            self._actions.put(None)
        if is_idle:
            _read_to_the_end(call)
        end_call(call)

    def _generated(self, action: pb.InteractRequest.Generate) -> Generator[pb.GenerateResponse, None, None]:
        with self._changed:
            generation = self._protocol.generate(action)
        try:
            while (message := self._wait(generation).take()) is not None:
                yield message
        finally:
            if not generation.is_over:
                self.pause()
            while not generation.is_over:
                generation.messages.clear()
                self._wait(generation)

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
            end_call(self._call)
            self.close()
            raise

    def _connect(self) -> None:
        self._actions = actions = queue.SimpleQueue[pb.InteractRequest | None]()
        stub, timeout = self._stubs[self._protocol.address], self._protocol.time_left()
        metadata = ((REQUEST_ID, self.request_id),)
        self._call = stub.Interact(iter(actions.get, None), timeout=timeout, metadata=metadata)
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


def _read_to_the_end(call: Any) -> None:
    """Let a call whose last action was sent end by itself, for at most CLOSE_SECONDS."""
    timer = threading.Timer(CLOSE_SECONDS, end_call, [call])
    timer.daemon = True
    timer.start()
    try:
        with suppress(grpc.RpcError):
            for _ in call:
                pass
    finally:
        timer.cancel()


class Client:
    """A client for `target`: "HOST:PORT", or several separated by commas, called in turn until one answers.

        with Client("10.0.0.5:50051,10.0.0.6:50051", security=Security(tls=True, token="...")) as client:
            print("".join(client.generate("To be", max_chars=400, seed=7)))

    A call that finds its server down, draining or full, or is lost on its way, is made at the next address: for up to
    `retry_seconds` without progress, and with 0 once at each address until something was received. The application
    sees everything once. `connect_seconds`, if given, is the limit while none listens and none has ever answered, and
    `begin_seconds` that of each call until something was received. The constructor raises ValueError for addresses and
    numbers that make no sense. Methods raise ServerError if no server can be reached or one refuses the call, with code
    DATA_LOSS if the servers' answers contradict each other.
    A client may be used by several threads, and as a context manager.
    """

    def __init__(
        self,
        target: str,
        *,
        retry_seconds: float = RETRY_SECONDS,
        connect_seconds: float | None = None,
        begin_seconds: float | None = None,
        security: Security = PLAIN,
    ) -> None:
        self._retry_seconds = values.seconds("retry_seconds", retry_seconds)
        self._contact = FirstContact(connect_seconds, begin_seconds)
        self._closed = threading.Event()
        self._security, self._addresses = security, split_addresses(target)
        self._channels = [security.channel(address, CHANNEL_OPTIONS) for address in self._addresses]
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
    ) -> TextStream:
        """Return the pieces of a text as they arrive; what else the server says is in attributes, see `TextStream`.

            text = client.generate("ROMEO:", temperature=0.7, stop="JULIET:")
            for piece in text:
                print(piece, end="", flush=True)
            print(text.seed, text.finish_reason)

        Parameters are those of `generate_request`. A `max_chars` of None is 400, and 0 is endless. `timeout` is for the
        whole text, in seconds; None and infinity mean no limit. `request_id` names the call in the logs of servers; by
        default, one is made. Raises TypeError or ValueError, with the parameter's name, for values that no server
        takes, before any call.
        """
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
        return TextStream(calls.messages(), calls.cancel, calls.request_id)

    def stream(
        self,
        request: pb.GenerateRequest,
        *,
        timeout: float | None = None,
        request_id: str = "",
        instead: pb.GenerateRequest | None = None,
    ) -> MessageStream[pb.GenerateResponse]:
        """Return the messages of a text; see `generate`. A request without max_chars is sent as it is: endless.

        `instead` is for the same text without the token of `request`, for servers that do not know it.
        """
        text = self._text(request, timeout, instead)
        calls = self._calls("Generate", text, request_id)
        return MessageStream(calls.messages(), calls.cancel, calls.request_id, lambda: text.resume_point)

    def samples(
        self, request: pb.GenerateRequest, *, timeout: float | None = None, request_id: str = ""
    ) -> MessageStream[pb.GenerateResponse]:
        """Return messages with whole texts in `samples`: one for each of the `seeds` of the request, in their order.

        That is the text of a call with this seed alone, and costs a server far less. A call has up to 1,024 seeds. See
        rill.proto for what does not go with them. A server that does not know them is a ServerError, UNIMPLEMENTED.
        """
        samples = SampleCalls(request, *self._limits(timeout), contact=self._contact)
        calls = self._calls("Generate", samples, request_id)
        return MessageStream(calls.messages(), calls.cancel, calls.request_id)

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
    ) -> MessageStream[pb.ScoreResponse]:
        """Return messages with the log-probabilities of the characters of `text` in nats, and a total on the last.

        With `top_logprobs`, `top` of each message has a CharLogprob for each character, with so many of the most
        probable alternatives, at most 20. With `as_prompt` the text is read exactly as `generate` reads a prompt: its
        first character has no log-probability (NaN), except after a `resume_token`. The total is of the others, and
        its token continues as `generate` with this prompt does. With `include_end` the text's end is one more entry,
        which counts in the total; the model must have an end symbol.

        `timeout` and `request_id` are as for `generate`. Raises TypeError or ValueError.
        """
        request = score_request(text, model, resume_token, top_logprobs, as_prompt, include_end)
        score = Scoring(request, *self._limits(timeout), contact=self._contact)
        calls = self._calls("Score", score, request_id)
        return MessageStream(calls.messages(), calls.cancel, calls.request_id)

    def score_lines(
        self,
        lines: Iterable[str],
        *,
        model: str = "",
        include_end: bool | None = None,
        timeout: float | None = None,
    ) -> LineScores:
        """Return how probable the model finds each line as a text of its own, in order, as soon as it is known.

            for score in client.score_lines(line.rstrip("\\n") for line in open("app.log")):
                if score.error or score.bits_per_symbol > 4:
                    print(score.line, score.text)

        The numbers are those of `score` for the line alone; many lines are scored at a time, with several calls, at all
        servers of `target`, and a call that breaks is repeated. `lines` may come as slowly as they like, and never end:
        a thread of its own reads them, some thousand ahead. `include_end` of None adds the end of each line where the
        model has an end symbol. An empty line has no symbols, and no end. What cannot be read is not an exception:
        the score says why in `error`. `timeout` is for all lines. Raises TypeError or ValueError.
        """
        queue = self._line_queue(model, include_end, timeout)
        calls = LineCalls(lines, queue, [stub.Score for stub in self._stubs], self._closed.is_set)
        scores = calls.scores(lambda: self.models(timeout=queue.time_left()), include_end)
        return LineScores(scores, calls.cancel)

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
    ) -> Session:
        """Return a live state on a server, which a with statement opens; see `Session`.

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
        protocol = InteractProtocol(
            open_action(model, resume_token, sampling),
            *self._limits(timeout),
            contact=self._contact,
            on_interrupted=on_interrupted,
            request_id=checked_id(request_id),
        )
        return Session(self._stubs, protocol)

    def models(self, *, timeout: float | None = None, request_id: str = "") -> pb.ListModelsResponse:
        """Return what is served, and how busy the server is. Raises ServerError."""
        metadata = ((REQUEST_ID, checked_id(request_id)),)
        attempts = Attempts(*self._limits(timeout), contact=self._contact)
        while True:
            ask = self._stubs[attempts.address].ListModels
            try:
                served: pb.ListModelsResponse = ask(
                    pb.ListModelsRequest(), timeout=attempts.time_left(), metadata=metadata
                )
                attempts.progressed()
                return served
            except grpc.RpcError as error:
                failure = ServerError.from_rpc(error).told(metadata[0][1])
            if self._closed.wait(attempts.failed(failure)):
                raise closed_error()

    def with_token(self, token: str) -> "Client":
        """Return a client that sends this bearer token over the connections of this one; closing either closes both.

        For a program that makes calls for several users. Raises ValueError for a token that would be sent in plain text
        to another machine, unless the client's `Security` allows it.
        """
        client = copy(self)
        client._security = self._security.with_token(token, self._addresses)
        client._stubs = [client._security.stub(channel) for channel in self._channels]
        return client

    def close(self) -> None:
        """Close the connections; calls in progress end."""
        self._closed.set()
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(
        self, request: pb.GenerateRequest, timeout: float | None, instead: pb.GenerateRequest | None = None
    ) -> Failover:
        if not isinstance(request, pb.GenerateRequest):
            raise TypeError(f"request must be a GenerateRequest, as `generate_request` returns, not {type(request)}")
        return Failover(request, *self._limits(timeout), contact=self._contact, instead=instead)

    def _line_queue(self, model: str, include_end: bool | None, timeout: float | None) -> LineQueue:
        if include_end is not None:
            values.flag("include_end", include_end)
        return LineQueue(values.text("model", model), *self._limits(timeout), self._contact)

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
        closed: threading.Event,
    ) -> None:
        self._methods, self._repeated, self.request_id, self._closed = methods, repeated, request_id, closed
        self._is_cancelled = threading.Event()
        self._call: Any = None

    def messages(self) -> Generator[Any, None, None]:
        """Yield the messages. Raises ServerError."""
        try:
            yield from self._received()
        except ServerError as error:
            error.told(self.request_id)
            raise

    def cancel(self) -> None:
        """End the loop, from another thread."""
        self._is_cancelled.set()
        if self._call is not None:
            end_call(self._call)

    def _received(self) -> Generator[Any, None, None]:
        repeated, metadata = self._repeated, ((REQUEST_ID, self.request_id),)
        while (request := repeated.request()) is not None:
            if self._closed.is_set():
                raise closed_error()
            method = self._methods[repeated.address]
            call = self._call = method(request, timeout=repeated.time_left(), metadata=metadata)
            error = None
            try:
                for message in call if not self._is_cancelled.is_set() else ():
                    if (shown := repeated.received(message)) is not None:
                        yield shown
            except grpc.RpcError as raised:
                error = raised
            finally:
                end_call(call)
            if self._is_cancelled.is_set() or self._is_cancelled.wait(repeated.ended(error)):
                return
        if (last := repeated.lost_end()) is not None:
            yield last
