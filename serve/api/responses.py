"""From what a stream has made to messages of rill.proto."""

import time
from weakref import WeakKeyDictionary

from google.protobuf.message import Message

from rill.serve.api.logprobs import LogprobEncoder, varint
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.engine.stream import Stream
from rill.serve.engine.types import FinishReason, Piece, Snapshot, StreamSpec
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

Sendable = Message | bytes  # what is written to a call: a message, or the bytes of one

FINISH = {
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.DRAINING: pb.FINISH_REASON_DRAINING,
}
_OUTPUT = b"\x1a"  # 3: message, of InteractResponse


class CallTimes:
    """When what happened to a call that came at `arrived`, time.monotonic()."""

    def __init__(self, arrived: float) -> None:
        self._arrived = arrived
        self._entered: float | None = None
        self._first_char: float | None = None

    def note(self, stream: Stream) -> None:
        """`stream` has done something for this call."""
        self._entered = self._entered or stream.entered
        self._first_char = self._first_char or stream.first_char

    @property
    def queued_seconds(self) -> float:
        """Until its first engine round; 0 before."""
        return self._since(self._entered)

    @property
    def first_char_seconds(self) -> float:
        """Until its first character was there; 0 before."""
        return self._since(self._first_char)

    def usage(self, prompt: int, generated: int) -> pb.Usage:
        """What the call has cost so far; characters."""
        return pb.Usage(
            prompt_chars=prompt,
            generated_chars=generated,
            queued_seconds=self.queued_seconds,
            first_char_seconds=self.first_char_seconds,
            total_seconds=self._since(time.monotonic()),
        )

    def _since(self, moment: float | None) -> float:
        return moment - self._arrived if moment else 0.0


class ResponseBuilder:
    """Makes messages; what has a snapshot gets a resume token from `tokens`."""

    def __init__(self, tokens: ResumeTokens) -> None:
        self._tokens = tokens
        self._encoders: WeakKeyDictionary[Model, LogprobEncoder] = WeakKeyDictionary()

    def output(self, model: Model, stream: Stream, piece: Piece) -> pb.GenerateResponse:
        """The message of a piece of `stream`, which is about to be sent; `with_logprobs` adds those."""
        message = pb.GenerateResponse(text=piece.text, position=stream.position)
        if piece.snapshot:
            message.resume_token = self.token(model, stream.spec, piece.snapshot)
        return message

    def with_logprobs(
        self, message: pb.GenerateResponse, model: Model, stream: Stream, piece: Piece
    ) -> pb.GenerateResponse | bytes:
        """`message`, of `piece`, with the log-probabilities if there are any: as bytes, a seventh of the objects' size.

        A message stays in memory for as long as its reader does not take it.
        """
        if not piece.logprobs:
            return message
        encoder = self._encoders.get(model)
        if encoder is None:
            encoder = self._encoders[model] = LogprobEncoder(model.bundle.vocabulary)
        encoded = encoder.encode(piece.text, piece.logprobs, stream.spec.logprobs or 0)
        return message.SerializeToString() + encoded

    def token(self, model: Model, spec: StreamSpec, snapshot: Snapshot) -> bytes:
        """The resume token of a stream that stands at `snapshot`."""
        return self._tokens.seal(model.bundle, model.numerics, spec, snapshot)


def event_of(output: pb.GenerateResponse | bytes) -> Sendable:
    """The InteractResponse that says it."""
    if isinstance(output, bytes):
        return _OUTPUT + varint(len(output)) + output
    return pb.InteractResponse(output=output)
