"""A call from its arrival to its end: what the metrics and the log report of it. Never a text, nor part of one."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Iterable

import grpc
import grpc.aio

from rill.serve.api.responses import CallTimes, Sendable
from rill.serve.api.stalls import Wait
from rill.serve.api.statuses import Context, code_of, reason_of
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import ServeError
from rill.serve.observe.ledger import Ledger
from rill.serve.observe.metrics import ModelMetrics, call_latency_of, calls_of, rejections_of

REQUEST_ID = "x-request-id"  # in a call's metadata, and in its trailing metadata, which costs no message
LONGEST_ID = 128  # characters
# A client whose deadline is over cancels at that moment, which may be here before our own clock says so.
DEADLINE_SECONDS = 0.1
NOT_LOGGED = ("ListModels",)  # those who watch a server ask it often

log = logging.getLogger("rill.calls")


class Call(Wait):
    """One call of `method`, on the event loop. Its handler says what becomes of it; most of it may never happen.

    Its id goes back to the client. `end` is why it ended: length, stop or complete; cancelled or deadline; or the
    reason why it was refused or broken off.
    """

    def __init__(self, method: str, context: Context, ledger: Ledger) -> None:
        super().__init__()
        self.method, self.id = method, request_id(context.invocation_metadata() or ())
        context.set_trailing_metadata(((REQUEST_ID, self.id),))
        self._context, self._note = context, ledger.note
        self.arrived = time.monotonic()
        self.end = "complete"
        self._metrics: ModelMetrics | None = None
        self._is_refused = True  # until it has a slot
        self._chars = {"prompt": 0, "generated": 0, "scored": 0}
        self._first: CallTimes | None = None  # of its first text
        self._text: CallTimes | None = None  # of the last one
        self._last_message = 0.0  # of that, time.monotonic()
        self._code = grpc.StatusCode.OK

    async def write(self, message: Sendable) -> None:
        """Send a message, as soon as the client takes it."""
        self.waits_for("read")
        await self._context.write(message)
        self.waits_for("")

    def found(self, metrics: ModelMetrics) -> None:
        """Its model is known."""
        self._metrics = metrics

    def joined(self, spec: StreamSpec) -> None:
        """It has a slot for what it begins with: from now on it is not refused, but broken off."""
        assert self._metrics
        self._is_refused = False
        if spec.state:
            self._note(self._metrics.resumes.inc, 1)

    def read(self, characters: int) -> None:
        """The model has read a prompt."""
        assert self._metrics
        self._note(self._metrics.prompt.inc, characters)
        self._chars["prompt"] += characters

    def generated(self, times: CallTimes, characters: int) -> None:
        """A message with the next characters of a text has been written; each text has `times` of its own."""
        assert self._metrics
        now = time.monotonic()
        if times is not self._text:
            self._text, self._first = times, self._first or times
            self._note(self._metrics.queue_time.observe, times.queued_seconds)
            if times.first_char_seconds:  # not if a stop was all
                self._note(self._metrics.time_to_first_character.observe, times.first_char_seconds)
        elif characters:
            self._note(self._metrics.inter_character_latency.observe, (now - self._last_message) / characters)
        self._last_message = now
        self._note(self._metrics.generated.inc, characters)
        self._chars["generated"] += characters

    def scored(self, characters: int) -> None:
        """A message with the log-probabilities of the next characters has been written."""
        assert self._metrics
        self._note(self._metrics.scored.inc, characters)
        self._chars["scored"] += characters

    # ---- its end

    def fail(self, error: BaseException) -> None:
        """It ends with `error`."""
        match error:
            case ServeError():
                self._code, self.end = code_of(error), reason_of(error)
                if self._is_refused:
                    self._note(rejections_of(self._model, self.end).inc, 1)
            # What is written to a call that is over fails; its cancellation may come later.
            case asyncio.CancelledError() | grpc.aio.InternalError():
                seconds_left = self._context.time_remaining()  # None: it has no deadline
                is_late = seconds_left is not None and seconds_left < DEADLINE_SECONDS
                self.end = "deadline" if is_late else "cancelled"
                self._code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            case _:  # a fault of ours: gRPC logs it
                self._code, self.end = grpc.StatusCode.UNKNOWN, "unknown"

    def close(self) -> None:
        """It is over."""
        self._note(self._write_down, time.monotonic() - self.arrived)

    def _write_down(self, seconds: float) -> None:
        calls_of(self.method, self._model, self._code.name).inc()
        if not self._is_refused:
            call_latency_of(self._model, self.method).observe(seconds)
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
        fields |= {f"{name}_chars": count for name, count in self._chars.items() if count}
        if self._first:
            fields["queued_seconds"] = round(self._first.queued_seconds, 6)
            fields["first_char_seconds"] = round(self._first.first_char_seconds, 6)
        return fields | {"total_seconds": round(seconds, 6)}


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The client's own, in printable ASCII without spaces, or a new one: 16 hex digits."""
    for key, value in metadata:
        if key == REQUEST_ID and value:
            return re.sub("[^!-~]", "_", str(value)[:LONGEST_ID])
    return f"{random.getrandbits(64):016x}"
