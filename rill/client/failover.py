"""Continue a text whose calls break: at which server, from where, and for how long. No connections here.

The loop around a `Failover` is the same in both clients:

    while (request := failover.request()) is not None:
        call the server number `failover.address`, pass each message to `received` and show what it returns;
        then wait for as many seconds as `ended` returns
    show what `lost_end` returns, if anything
"""

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import grpc

from rill.client.errors import ServerError, too_old_for_constraints
from rill.client.retry import RETRY_SECONDS, Attempts, FirstContact
from rill.client.symbols import checked_lengths, code_points, symbol_count, symbols_of, text_position
from rill.v1 import rill_pb2 as pb

MOST_CHARS = 2**64 - 1  # that positions can count
_BETWEEN = b"\xff"  # symbols that may be longer than a code point: in no text in UTF-8


class _ReplayPoint(NamedTuple):
    """Where in the text a server can begin: with a token, or without one where the request began."""

    token: bytes
    position: int  # in symbols
    text_position: int  # in code points
    digest: blake2b  # of the text before it


class Failover(Attempts):
    """One text, over as many calls as it takes. Methods raise ServerError for what no further call can mend.

    `instead` is a request for the same text that has no token, for when that of `request` is refused.

    The delivered text is hashed. A call that has to begin before its end first requests exactly the known characters,
    unpaced: they must have the same hash, and the last message brings a token for the end. Characters are the symbols
    of the model: what is known of a message ends where one of them does.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        contact: FirstContact | None = None,
        instead: pb.GenerateRequest | None = None,
    ) -> None:
        super().__init__(addresses, retry_seconds, timeout, clock, contact)
        self._request, self._instead = request, instead
        # Positions count from the beginning of the stream, which is before this request's if that has a token.
        self._seed: int | None = None
        self._start = self._end = 0  # of the delivered text
        self._text_start = self._text_end = 0  # the same in code points
        self._digest = blake2b()  # of the delivered text
        self._from = _ReplayPoint(b"", 0, 0, blake2b())
        self._finished = False
        # The present call.
        self._at = self._text_at = 0
        self._call_digest = blake2b()  # of the text up to `_at`; the same object as `_digest` once that is the end
        self._catching_up = False
        self._caught_up = False
        self._has_tokens = True  # False: the servers issue none, and known characters have to be skipped

    @property
    def resume_point(self) -> tuple[bytes, int, int]:
        """The last resume token that has arrived, and its position in symbols and in code points: also of a message
        that showed nothing new.
        """
        return self._from.token, self._from.position, self._from.text_position

    def request(self) -> pb.GenerateRequest | None:
        """Return the next request; None if the text is complete."""
        if self._complete() and self._may_match and self._end == self._from.position and self._has_tokens:
            self._from = self._beginning()  # only the last message says whether the text matches
        known = self._end - self._from.position
        if self._finished or (self._complete() and (known == 0 or not self._has_tokens)):
            return None
        self._at, self._text_at = self._from.position, self._from.text_position
        self._call_digest = self._from.digest.copy()
        self._catching_up, self._caught_up = known > 0 and self._has_tokens, False
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        if self._from.token:
            request.resume_token = self._from.token
            request.ClearField("prompt")
            request.ClearField("stop")  # the token has them, and a partial match
            request.sampling.ClearField("constraint")  # which would begin anew, and the token knows how far it is
        elif self._seed is not None and not request.resume_token:
            request.sampling.seed = self._seed
        if self._catching_up:
            request.max_chars = known
            for field in ("logprobs", "resume_every", "chars_per_second"):
                request.ClearField(field)
        elif request.max_chars and self.has_begun:
            request.max_chars -= self._from.position - self._start
        return request

    def received(self, message: pb.GenerateResponse) -> pb.GenerateResponse | None:
        """Return what the application is to see of a message, if anything; the message itself may be changed."""
        if not self.has_begun:
            self._begin(message)
        begin = text_position(message)
        if (message.position, begin) != (self._at, self._text_at):
            raise _data_loss(
                f"a message begins at character {message.position:,} instead of {self._at:,}"
                if message.position != self._at
                else f"a message begins after {begin:,} code points instead of {self._text_at:,}"
            )
        lengths, count = checked_lengths(message), symbol_count(message)
        if self._at + count > self._most():
            raise _data_loss(f"a message continues to character {self._at + count:,} of {self._most():,}")
        known = min(self._end - self._at, count)
        cut = code_points(lengths, known)
        self._follow(message.text[:cut], lengths[:known])
        new = message.text[cut:]
        if new:
            self._follow(new, lengths[known:])
            self._end, self._text_end = self._at, self._text_at
            self.progressed()
        if message.resume_token:
            self._from = _ReplayPoint(message.resume_token, self._at, self._text_at, self._call_digest.copy())
        last = message.finish_reason not in (pb.FINISH_REASON_UNSPECIFIED, pb.FINISH_REASON_DRAINING)
        if last and self._at < self._end:
            raise _data_loss(f"one ends it after {self._at:,} characters, after {self._end:,} were delivered")
        is_known = last and self._catching_up and message.finish_reason == pb.FINISH_REASON_LENGTH
        if is_known and not self._complete():
            self._caught_up, self._has_tokens = True, bool(message.resume_token)
            return None
        if last and self._is_constrained and not message.usage.HasField("matches"):
            raise too_old_for_constraints()
        self._finished = last
        if message.finish_reason == pb.FINISH_REASON_DRAINING and self._retry_seconds:
            message.ClearField("finish_reason")
            message.ClearField("usage")
        return self._shown(message, known, begin + cut) if new or message.finish_reason else None

    def ended(self, error: grpc.RpcError | None) -> float:
        """Return the seconds to wait before the next request, now that a call ended. Raises ServerError."""
        if self._finished or self._caught_up:  # the call did its work, whatever its status says
            return 0.0
        failure = ServerError.from_rpc(error) if error else ServerError.ended_early()
        refused = self._is_refused(failure)
        delay = self.failed(failure, f"the stream broke after {self._end - self._start:,} characters", refused)
        if refused:
            if not self._from.token and self._instead:
                self._request, self._instead = self._instead, None
            self._from = self._beginning()
        return delay

    def lost_end(self) -> pb.GenerateResponse | None:
        """Return the last message, if the whole text was delivered and only that message was lost."""
        if self._finished:
            return None
        return pb.GenerateResponse(
            position=self._end,
            text_position=self._text_end,
            resume_token=self._from.token if self._from.position == self._end else b"",
            finish_reason=pb.FINISH_REASON_LENGTH,
        )

    def _begin(self, message: pb.GenerateResponse) -> None:
        self.has_begun = True
        self._start = self._end = self._at = message.position
        self._text_start = self._text_end = self._text_at = text_position(message)
        self._seed = message.seed
        self._from = self._beginning()
        self._call_digest = self._digest

    def _beginning(self) -> _ReplayPoint:
        return _ReplayPoint(b"", self._start, self._text_start, blake2b())

    @property
    def _is_constrained(self) -> bool:
        """Tell whether the request has a constraint; that of its token is not known here."""
        return self._request.sampling.constraint.WhichOneof("kind") is not None

    @property
    def _may_match(self) -> bool:
        return self._is_constrained or bool(self._request.resume_token)

    def _most(self) -> int:
        """Return the position at which the text ends at the latest."""
        count = self._request.max_chars
        return min(self._start + count, MOST_CHARS) if count else MOST_CHARS

    def _complete(self) -> bool:
        count = self._request.max_chars
        return bool(count) and self.has_begun and self._end == self._start + count

    def _follow(self, text: str, lengths: list[int]) -> None:
        """Advance over a text of this call. Raises ServerError if it differs from the delivered text."""
        if lengths:  # the same text of other symbols is another one
            self._call_digest.update(b"".join(symbol.encode() + _BETWEEN for symbol in symbols_of(text, lengths)))
        else:
            self._call_digest.update(text.encode())
        self._at += len(lengths) or len(text)
        self._text_at += len(text)
        if self._at == self._end and self._call_digest is not self._digest:
            if self._call_digest.digest() != self._digest.digest():
                raise _data_loss("one continued with another text: they have different models or different numerics")
            self._digest = self._call_digest

    def _shown(self, message: pb.GenerateResponse, known: int, begin: int) -> pb.GenerateResponse:
        """Return the message without its first `known` characters; what remains begins at code point `begin`."""
        if known:
            message.text = message.text[begin - text_position(message) :]
            message.position += known
            del message.logprobs[:known], message.symbol_lengths[:known]
        message.text_position = begin
        if message.position != self._start:
            message.ClearField("seed")  # on the first message only
        return message

    def _is_refused(self, failure: ServerError) -> bool:
        """Tell whether a token was refused that the text can do without: the request's own if there is `instead`."""
        refused = failure.code is grpc.StatusCode.INVALID_ARGUMENT and failure.reason.startswith("RESUME_TOKEN_")
        if not refused or (self.has_begun and not self._retry_seconds):
            return False
        return self._instead is not None or (self.has_begun and bool(self._from.token))


def _data_loss(difference: str) -> ServerError:
    return ServerError(grpc.StatusCode.DATA_LOSS, f"the servers do not produce the same text: {difference}")
