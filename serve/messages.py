"""From what a stream has made to messages of rill.proto."""

import time

from protos import rill_pb2 as pb
from serve.model import Model
from serve.stream import End, Order, Piece, Snapshot, Stream
from serve.tokens import Tokens

FINISH = {
    End.LENGTH: pb.FINISH_REASON_LENGTH,
    End.STOP: pb.FINISH_REASON_STOP,
    End.DRAINING: pb.FINISH_REASON_DRAINING,
}


class Times:
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


class Messages:
    """Makes messages; what has a snapshot gets a resume token from `tokens`."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def output(self, model: Model, stream: Stream, piece: Piece) -> pb.GenerateResponse:
        """The message of a piece of `stream`, which is about to be sent."""
        message = pb.GenerateResponse(text=piece.text, position=stream.position)
        if piece.snapshot:
            message.resume_token = self.token(model, stream.order, piece.snapshot)
        if piece.logprobs:
            encoded = model.logprob_encoder.encode(piece.text, piece.logprobs, stream.order.logprobs or 0)
            message.MergeFromString(encoded)
        return message

    def token(self, model: Model, order: Order, snapshot: Snapshot) -> bytes:
        """The resume token of a stream that stands at `snapshot`."""
        return self._tokens.seal(model.bundle, model.numerics, order, snapshot)
