"""What a client does when a stream breaks: where it goes on, from what, and for how long it tries. No connections here.

The loop around it is the same for both clients:

    while (request := continuation.request()) is not None:
        call the server number `continuation.address` and show what `received` returns for each of its messages,
        then wait for as long as `ended` says
    show what `lost_end` returns, if anything
"""

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import grpc

from rill.client.errors import ServerError
from rill.client.retry import Backoff, is_away
from rill.v1 import rill_pb2 as pb

MOST_CHARS = 2**64 - 1  # that positions can count
ENDED_EARLY = "the server ended the stream without a last message"


class _Place(NamedTuple):
    """A place in the text from which a server can go on: by a token, or without one from where the request began."""

    token: bytes
    position: int
    digest: blake2b  # of the text before it


class Failover:
    """One text, over as many calls as it takes. Its methods raise ServerError for what no further call can mend.

    What is delivered is hashed. A call that has to begin before the end of it is first asked for exactly what is known
    already, as fast as it comes: its text must have the same hash, and its last message brings a token for the end.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        addresses: int = 1,
        retry_seconds: float = 30.0,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = 0  # whom to call next
        self._request, self._addresses, self._retry_seconds, self._clock = request, addresses, retry_seconds, clock
        self._deadline = None if timeout is None else clock() + timeout
        # The text: positions count from the stream's beginning, which is before this request's if that has a token.
        self._seed: int | None = None
        self._start: int | None = None  # None: no message yet
        self._end = 0
        self._digest = blake2b()  # of what was delivered
        self._place = _Place(b"", 0, blake2b())
        self._finished = False
        # The present call.
        self._at = 0
        self._call_digest = blake2b()  # of the text up to `_at`; the very `_digest` once that is the end
        self._catching_up = False
        self._caught_up = False
        self._tokens = True  # False: the servers issue none, and what is known has to be skipped
        # Calls in a row that brought nothing new.
        self._failures = 0
        self._broken: float | None = None  # since when
        self._backoff = Backoff()

    def time_left(self) -> float | None:
        """For the next call, in seconds."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 0.0)

    def request(self) -> pb.GenerateRequest | None:
        """What to send next; None if there is nothing left to ask for."""
        known = self._end - self._place.position
        if self._finished or (self._complete() and (known == 0 or not self._tokens)):
            return None
        self._at, self._call_digest = self._place.position, self._place.digest.copy()
        self._catching_up, self._caught_up = known > 0 and self._tokens, False
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        if self._place.token:
            request.resume_token = self._place.token
            request.ClearField("prompt")
            request.ClearField("stop")  # the token has them, and which of them may have begun
        elif self._seed is not None and not request.resume_token:
            request.sampling.seed = self._seed
        if self._catching_up:
            request.max_chars = known
            for field in ("logprobs", "resume_every", "chars_per_second"):
                request.ClearField(field)
        elif request.max_chars and self._start is not None:
            request.max_chars -= self._place.position - self._start
        return request

    def received(self, message: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """What the application is to see of a message, if anything; the message itself may be changed."""
        if self._start is None:
            self._begin(message)
        if message.position != self._at:
            raise _data_loss(f"a message begins at character {message.position:,} instead of {self._at:,}")
        if self._at + len(message.text) > self._most():
            raise _data_loss(f"a message goes on to character {self._at + len(message.text):,} of {self._most():,}")
        known = message.text[: self._end - self._at]
        new = message.text[len(known) :]
        self._follow(known)
        if new:
            self._follow(new)
            self._end, self._failures, self._broken = self._at, 0, None
            self._backoff.reset()
        if message.resume_token:
            self._place = _Place(message.resume_token, self._at, self._call_digest.copy())
        last = message.finish_reason not in (pb.FINISH_REASON_UNSPECIFIED, pb.FINISH_REASON_DRAINING)
        if last and self._at < self._end:
            raise _data_loss(f"one ends it after {self._at:,} characters, of which there were {self._end:,}")
        if last and self._catching_up and message.finish_reason == pb.FINISH_REASON_LENGTH:
            self._caught_up, self._tokens = True, bool(message.resume_token)
            return None
        self._finished = last
        if message.finish_reason == pb.FINISH_REASON_DRAINING and self._retry_seconds:
            message.ClearField("finish_reason")
            message.ClearField("usage")
        return self._shown(message, len(known)) if new or message.finish_reason else None

    def ended(self, error: grpc.RpcError | None) -> float:
        """Seconds to wait before the next call, now that this one ended. Raises ServerError if there is to be none."""
        if self._finished or self._caught_up:  # it did what it was to do, whatever its status says
            return 0.0
        failure = ServerError.from_rpc(error) if error else ServerError(grpc.StatusCode.UNAVAILABLE, ENDED_EARLY)
        if not self._may_go_on(failure):
            raise failure
        now = self._clock()
        self._failures += 1
        self._broken = now if self._broken is None else self._broken
        if self._start is None:
            if self._failures == self._addresses:
                raise failure
        elif now - self._broken >= self._retry_seconds:
            raise self._given_up(failure)
        if self._refused(failure):
            self._place = _Place(b"", self._start or 0, blake2b())  # this server is there: the same one again
        else:
            self.address = (self.address + 1) % self._addresses
        return self._wait(failure.retry_seconds or 0.0, now - self._broken)

    def lost_end(self) -> pb.GenerateResponse | None:
        """The last message, if the whole text was delivered and only the word that this was all got lost."""
        if self._finished:
            return None
        return pb.GenerateResponse(
            position=self._end,
            resume_token=self._place.token if self._place.position == self._end else b"",
            finish_reason=pb.FINISH_REASON_LENGTH,
        )

    def _begin(self, message: pb.GenerateResponse) -> None:
        self._start = self._end = self._at = message.position
        self._seed = message.seed
        self._place = _Place(b"", message.position, blake2b())
        self._call_digest = self._digest

    def _most(self) -> int:
        """How far the text may go."""
        asked = self._request.max_chars
        return min((self._start or 0) + asked, MOST_CHARS) if asked else MOST_CHARS

    def _complete(self) -> bool:
        count = self._request.max_chars
        return bool(count) and self._start is not None and self._end == self._start + count

    def _follow(self, text: str) -> None:
        """Go on by a text of this call. Raises ServerError if what is delivered already was another text."""
        self._call_digest.update(text.encode())
        self._at += len(text)
        if self._at == self._end and self._call_digest is not self._digest:
            if self._call_digest.digest() != self._digest.digest():
                raise _data_loss("one continued with another text: they have different models or different numerics")
            self._digest = self._call_digest

    def _shown(self, message: pb.GenerateResponse, known: int) -> pb.GenerateResponse:
        """The message without its first characters, which are known."""
        if known:
            message.text = message.text[known:]
            message.position += known
            del message.logprobs[:known]
        if message.position != self._start:
            message.ClearField("seed")  # on the first message only
        return message

    def _may_go_on(self, failure: ServerError) -> bool:
        if self._start is None:
            return failure.code is grpc.StatusCode.UNAVAILABLE
        if not self._retry_seconds:
            return False
        if is_away(failure) or self._refused(failure):
            return True
        match failure.code:
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.ABORTED:
                return failure.reason in ("ENGINE_ROUND_FAILED", "READER_STALLED")
            case grpc.StatusCode.FAILED_PRECONDITION:
                return self._addresses > 1 and failure.reason == "RESUME_TOKEN_OTHER_MODEL"
            case _:
                return False

    def _refused(self, failure: ServerError) -> bool:
        """A token was refused, and not the request's own."""
        refused = failure.code is grpc.StatusCode.INVALID_ARGUMENT and failure.reason.startswith("RESUME_TOKEN_")
        return refused and bool(self._place.token)

    def _wait(self, asked: float, tried: float) -> float:
        """How long to wait, `asked` seconds at least: not at all before every address had its turn, and never beyond
        the last moment to try.
        """
        if self._failures < self._addresses or self._start is None:
            return 0.0
        wait = self._backoff.next(asked)
        left = self.time_left()
        return min(wait, self._retry_seconds - tried, wait if left is None else left)

    def _given_up(self, failure: ServerError) -> ServerError:
        delivered = self._end - (self._start or 0)
        return ServerError(
            failure.code,
            f"the stream broke after {delivered:,} characters and could not be continued within "
            f"{self._retry_seconds:g} s ({self._failures - 1} attempts): {failure}",
            failure.retry_seconds,
        )


def _data_loss(what: str) -> ServerError:
    return ServerError(grpc.StatusCode.DATA_LOSS, f"the servers do not produce the same text: {what}")
