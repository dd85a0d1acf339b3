"""Sending a text: the loop that Generate and Interact share."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from rill.serve.api.call import Call
from rill.serve.api.responses import FINISH, CallTimes, ResponseBuilder
from rill.serve.engine.stream import Stream
from rill.serve.engine.types import FinishReason, Snapshot, StreamSpec
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

COMPLETE: dict[FinishReason | None, pb.FinishReason] = {
    reason: FINISH[reason] for reason in (FinishReason.LENGTH, FinishReason.STOP)
}

Write = Callable[[pb.GenerateResponse | bytes], Awaitable[None]]


class TextSender:
    """Sends one text with `write`. Several streams may generate it, one after another; `spec` is that of the first.

    Times count from `started`, time.monotonic(). `snapshot` is that of the last piece which has one. With
    `keeps_state`, the caller sends the state itself where a stream is drained, paused or fails.
    """

    def __init__(
        self,
        spec: StreamSpec,
        model: Model,
        messages: ResponseBuilder,
        call: Call,
        started: float,
        write: Write,
        keeps_state: bool = False,
    ) -> None:
        self._prompt_chars, self._start = spec.prompt_chars, spec.position
        self._model, self._messages, self._call, self._write = model, messages, call, write
        self._finish, self._keeps_state = COMPLETE if keeps_state else FINISH, keeps_state
        self._times = CallTimes(started)
        self.snapshot: Snapshot | None = None

    async def send(self, stream: Stream) -> FinishReason:
        """Send what `stream` generates; returns why it ended. Raises the stream's error after the text before it."""
        model, messages, times, start = self._model, self._messages, self._times, self._start
        reason = None
        while reason is None:
            piece, reason = await stream.next_piece()
            times.note(stream)
            message = messages.output(model, stream, piece)
            if stream.position == start:
                message.seed = stream.spec.seed
                if self._prompt_chars:
                    self._call.on_prompt_read(self._prompt_chars)
            if code := self._finish.get(reason):
                message.finish_reason = code
                sent = stream.position + len(piece.text) - start
                message.usage.CopyFrom(times.usage(self._prompt_chars, sent))
                if (automaton := stream.spec.automaton) and piece.snapshot:
                    message.usage.matches = automaton.matches(piece.snapshot.automaton_state)
            if piece.text or code or not self._keeps_state:  # a stream that fails leaves a token without text
                await self._write(messages.with_logprobs(message, model, stream, piece))
                model.mark_sent(stream, piece.text)
                stream.text_position += sum(message.symbol_lengths)  # there are none where symbols are characters
                self._call.on_generated(times, len(piece.text))
            if piece.snapshot:
                self.snapshot = replace(piece.snapshot, text_position=stream.text_position)
        return reason
