"""A call from its arrival to its end: what the metrics and the log report of it. Never a text, nor part of one."""

import asyncio
import logging
import time

import grpc
import grpc.aio

from rill.request_ids import REQUEST_ID, request_id
from rill.serve.api.responses import CallTimes, Sendable
from rill.serve.api.stalls import ClientWait
from rill.serve.api.statuses import Context, code_of, reason_of
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import ServeError
from rill.serve.observe.ledger import Ledger
from rill.serve.observe.metrics import ModelMetrics, call_latency_of, calls_of, rejections_of

# A client whose deadline has passed cancels at that moment, which may be before our own clock reaches it.
DEADLINE_SECONDS = 0.1
NOT_LOGGED = ("ListModels",)  # monitoring calls it often

log = logging.getLogger("rill.calls")


class Call(ClientWait):
    """One call of `method`, on the event loop. Its handler reports events, most of which may never happen.

    The id is returned to the client. `end` is the reason for the end: length, stop or complete; cancelled or deadline;
    or why the call was refused or aborted.
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
        self.constraint = ""  # its kind, if there is one
        self._chars = {"prompt": 0, "generated": 0, "scored": 0}
        self._first: CallTimes | None = None  # of the first text
        self._text: CallTimes | None = None  # of the latest text
        self._last_message = 0.0  # of the latest text, time.monotonic()
        self._code = grpc.StatusCode.OK

    async def write(self, message: Sendable) -> None:
        """Send a message as soon as the client takes it."""
        self.wait_for("read")
        await self._context.write(message)
        self.wait_for("")

    def on_model(self, metrics: ModelMetrics) -> None:
        """The model is known."""
        self._metrics = metrics

    def on_slot(self, spec: StreamSpec) -> None:
        """The call has a slot for its first stream: from now on it can be aborted, not refused."""
        assert self._metrics
        self._is_refused = False
        if spec.state:
            self._note(self._metrics.resumes.inc, 1)

    def on_prompt_read(self, characters: int) -> None:
        """The model has read a prompt."""
        assert self._metrics
        self._note(self._metrics.prompt.inc, characters)
        self._chars["prompt"] += characters

    def on_generated(self, times: CallTimes, characters: int) -> None:
        """A message with the next characters of a text was written; each text has `times` of its own."""
        assert self._metrics
        now = time.monotonic()
        if times is not self._text:
            self._text, self._first = times, self._first or times
            self._note(self._metrics.queue_time.observe, times.queued_seconds)
            if times.first_char_seconds:  # 0 if the text is empty before a stop
                self._note(self._metrics.time_to_first_character.observe, times.first_char_seconds)
        elif characters:
            self._note(self._metrics.inter_character_latency.observe, (now - self._last_message) / characters)
        self._last_message = now
        self._note(self._metrics.generated.inc, characters)
        self._chars["generated"] += characters

    def on_scored(self, characters: int) -> None:
        """A message with the log-probabilities of the next characters was written."""
        assert self._metrics
        self._note(self._metrics.scored.inc, characters)
        self._chars["scored"] += characters

    def on_samples(self, prompt: int, generated: int) -> None:
        """A message with whole texts was written: the model has read and generated so many characters."""
        assert self._metrics
        if prompt:
            self.on_prompt_read(prompt)
        self._note(self._metrics.generated.inc, generated)
        self._chars["generated"] += generated

    def fail(self, error: BaseException) -> None:
        """Record that the call ends with `error`."""
        match error:
            case ServeError():
                self._code, self.end = code_of(error), reason_of(error)
                if self._is_refused:
                    self._note(rejections_of(self._model, self.end).inc, 1)
            # A write to a call that has ended fails; the cancellation may arrive later.
            case asyncio.CancelledError() | grpc.aio.InternalError():
                seconds_left = self._context.time_remaining()  # None without a deadline
                is_late = seconds_left is not None and seconds_left < DEADLINE_SECONDS
                self.end = "deadline" if is_late else "cancelled"
                self._code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
            case _:  # a bug: gRPC logs it
                self._code, self.end = grpc.StatusCode.UNKNOWN, "unknown"

    def close(self) -> None:
        """Record the end of the call."""
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
        """Return the fields of the log line, in order, without those of events that did not happen."""
        fields: dict[str, str | int | float] = {
            "id": self.id,
            "method": self.method,
            "model": self._model,
            "code": self._code.name,
            "end": self.end,
        }
        if self.constraint:
            fields["constraint"] = self.constraint
        fields |= {f"{name}_chars": count for name, count in self._chars.items() if count}
        if self._first:
            fields["queued_seconds"] = round(self._first.queued_seconds, 6)
            fields["first_char_seconds"] = round(self._first.first_char_seconds, 6)
        return fields | {"total_seconds": round(seconds, 6)}
