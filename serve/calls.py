"""A call from its arrival to its end: what the metrics and the log say of it. Never a text, nor a part of one."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from serve.errors import RillError
from serve.metrics import CALL_LATENCY, CALLS, REJECTIONS, ModelMetrics
from serve.status import Context, code_of, reason_of
from serve.stream import Stream

REQUEST_ID = "x-request-id"  # in a call's metadata, and in its trailing metadata, which costs no message
LONGEST_ID = 128  # characters
# A client whose deadline is over cancels at that moment, which may be here before our own clock says so.
DEADLINE_SECONDS = 0.1
NOT_LOGGED = ("ListModels",)  # those who watch a server ask it often

log = logging.getLogger("rill.calls")


class Call:
    """One call of `method`, on the event loop. Its handler says what becomes of it; most of it may never happen.

    `end` is why it ended: length, stop or complete; cancelled or deadline; or the reason why it was refused or broken
    off.
    """

    def __init__(self, method: str, request_id: str) -> None:
        self.method, self.id = method, request_id
        self.arrived = time.monotonic()
        self.end = "complete"
        self.generated_chars = self.scored_chars = 0
        self._metrics: ModelMetrics | None = None
        self._stream: Stream | None = None
        self._last_message: float | None = None
        self._code = grpc.StatusCode.OK

    def since_arrival(self, moment: float | None) -> float:
        """Seconds from the arrival to `moment`, in time.monotonic(); 0 for None."""
        return moment - self.arrived if moment else 0.0

    def found(self, metrics: ModelMetrics) -> None:
        """Its model is known."""
        self._metrics = metrics

    def joined(self, stream: Stream) -> None:
        """It has a slot: from now on it is not refused, but broken off."""
        assert self._metrics
        self._stream = stream
        if stream.order.state:
            self._metrics.resumes.inc()

    def generated(self, characters: int) -> None:
        """A message with the next characters of its text has been written."""
        assert self._metrics
        assert self._stream
        now = time.monotonic()
        if self._last_message is None:
            self._begin()
            if self._stream.first_char:  # not if a stop was all
                self._metrics.time_to_first_character.observe(self.since_arrival(self._stream.first_char))
        elif characters:
            self._metrics.inter_character_latency.observe((now - self._last_message) / characters)
        self._last_message = now
        self._metrics.generated.inc(characters)
        self.generated_chars += characters

    def scored(self, characters: int) -> None:
        """A message with the log-probabilities of the next characters has been written."""
        assert self._metrics
        if not self.scored_chars:
            self._begin()
        self._metrics.scored.inc(characters)
        self.scored_chars += characters

    def _begin(self) -> None:
        """Its first message has been written."""
        assert self._metrics
        assert self._stream
        self._metrics.queue_time.observe(self.since_arrival(self._stream.entered))
        self._metrics.prompt.inc(self._stream.order.prompt_chars)

    # ---- its end

    def fail(self, error: BaseException, seconds_left: float | None) -> None:
        """It ends with `error`; `seconds_left` are those until its deadline, if it has one."""
        match error:
            case RillError():
                self._code, self.end = code_of(error), reason_of(error)
                if self._stream is None:
                    REJECTIONS.labels(self._model, self.end).inc()
            # What is written to a call that is over fails; its cancellation may come later.
            case asyncio.CancelledError() | grpc.aio.InternalError():
                is_late = seconds_left is not None and seconds_left < DEADLINE_SECONDS
                self.end = "deadline" if is_late else "cancelled"
                self._code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            case _:  # a fault of ours: gRPC logs it
                self._code, self.end = grpc.StatusCode.UNKNOWN, "unknown"

    def close(self) -> None:
        """It is over."""
        seconds = self.since_arrival(time.monotonic())
        CALLS.labels(self.method, self._model, self._code.name).inc()
        if self._stream:
            CALL_LATENCY.labels(self._model, self.method).observe(seconds)
        if self.method not in NOT_LOGGED:
            log.info("call", extra={"fields": self._fields(seconds)})

    @property
    def _model(self) -> str:
        return self._metrics.name if self._metrics else ""

    def _fields(self, seconds: float) -> dict[str, str | int | float]:
        """What the log says, in this order; nothing of what has not happened."""
        fields: dict[str, str | int | float] = {
            "id": self.id,
            "method": self.method,
            "model": self._model,
            "code": self._code.name,
            "end": self.end,
        }
        if stream := self._stream:
            fields["prompt_chars"] = stream.order.prompt_chars
            if self.scored_chars:
                fields["scored_chars"] = self.scored_chars
            else:
                fields["generated_chars"] = self.generated_chars
            if stream.entered:
                fields["queued_seconds"] = round(self.since_arrival(stream.entered), 6)
            if stream.first_char:
                fields["first_char_seconds"] = round(self.since_arrival(stream.first_char), 6)
        return fields | {"total_seconds": round(seconds, 6)}


@contextmanager
def observed(method: str, context: Context) -> Iterator[Call]:
    """A call of `method`, from here to the end of the context, whatever that is; its id goes back to the client."""
    call = Call(method, request_id(context.invocation_metadata() or ()))
    context.set_trailing_metadata(((REQUEST_ID, call.id),))
    try:
        yield call
    except BaseException as error:
        call.fail(error, context.time_remaining())
        raise
    finally:
        call.close()


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The client's own, in printable ASCII without spaces, or a new one: 16 hex digits."""
    for key, value in metadata:
        if key == REQUEST_ID and value:
            return re.sub("[^!-~]", "_", str(value)[:LONGEST_ID])
    return secrets.token_hex(8)
