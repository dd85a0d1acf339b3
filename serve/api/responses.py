"""From the output of a stream to messages of rill.proto."""

import time
from dataclasses import replace
from weakref import WeakKeyDictionary

from google.protobuf.message import Message

from rill.serve.api.logprobs import TOP, LogprobEncoder, varint
from rill.serve.api.resume_tokens import ResumeTokens, Resumption
from rill.serve.engine.stream import Stream
from rill.serve.engine.types import FinishReason, Logprobs, Piece, Snapshot, StreamSpec
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

Sendable = Message | bytes  # a message, or its bytes

FINISH: dict[FinishReason | None, pb.FinishReason] = {
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.DRAINING: pb.FINISH_REASON_DRAINING,
}
_OUTPUT = b"\x1a"  # 3: message, of InteractResponse


class CallTimes:
    """The times of a text, counted from `arrived`, time.monotonic()."""

    def __init__(self, arrived: float) -> None:
        self._arrived = arrived
        self._entered: float | None = None
        self._first_char: float | None = None

    def note(self, stream: Stream) -> None:
        """Take over the times of a stream that generates the text, as far as they are not known."""
        self._entered = self._entered or stream.entered
        self._first_char = self._first_char or stream.first_char

    @property
    def queued_seconds(self) -> float:
        """Return the time until the first engine round; 0 before it."""
        return self._since(self._entered)

    @property
    def first_char_seconds(self) -> float:
        """Return the time until the first character was generated; 0 before it."""
        return self._since(self._first_char)

    def usage(self, prompt: int, generated: int) -> pb.Usage:
        """Return the usage so far; `prompt` and `generated` are in characters."""
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
    """Builds messages; a piece with a snapshot gets a resume token from `tokens`."""

    def __init__(self, tokens: ResumeTokens) -> None:
        self._tokens = tokens
        self._encoders: WeakKeyDictionary[Model, LogprobEncoder] = WeakKeyDictionary()

    def output(self, model: Model, stream: Stream, piece: Piece) -> pb.GenerateResponse:
        """Return the message of the next piece of `stream`; `with_logprobs` adds its log-probabilities."""
        if not model.codec.is_text:
            return self._decoded(model, stream, piece)
        position = stream.position
        message = pb.GenerateResponse(text=piece.text, position=position, text_position=position)
        if piece.snapshot:
            message.resume_token = self.token(model, stream.spec, piece.snapshot)
        return message

    def _decoded(self, model: Model, stream: Stream, piece: Piece) -> pb.GenerateResponse:
        """Return the message of a piece whose symbols are not characters."""
        symbols, begin = model.codec.symbols(piece.text), stream.text_position
        text, lengths = "".join(symbols), list(map(len, symbols))
        message = pb.GenerateResponse(text=text, position=stream.position, text_position=begin, symbol_lengths=lengths)
        if piece.snapshot:
            snapshot = replace(piece.snapshot, text_position=begin + len(text))
            message.resume_token = self.token(model, stream.spec, snapshot)
        return message

    def last(
        self, model: Model, spec: StreamSpec | Resumption, at: Snapshot, reason: FinishReason
    ) -> pb.GenerateResponse:
        """Return the last message of a stream that ends at a snapshot without more text."""
        message = pb.GenerateResponse(
            position=at.position,
            text_position=at.position if model.codec.is_text else at.text_position,
            resume_token=self.token(model, spec, at),
            finish_reason=FINISH[reason],
        )
        if spec.automaton:
            message.usage.matches = spec.automaton.matches(at.automaton_state)
        return message

    def with_logprobs(
        self, message: pb.GenerateResponse, model: Model, stream: Stream, piece: Piece
    ) -> pb.GenerateResponse | bytes:
        """Return the message of `piece` with its log-probabilities, if any: as bytes, a seventh of the objects' size.

        A message stays in memory until its reader takes it.
        """
        if not piece.logprobs:
            return message
        symbols = model.codec.symbols(piece.text)
        encoded = self._encoder(model).encode(symbols, piece.logprobs, stream.spec.logprobs or 0)
        return message.SerializeToString() + encoded

    def scores(
        self, model: Model, position: int, text: str, logprobs: Logprobs, alternatives: int | None
    ) -> pb.ScoreResponse | bytes:
        """Return the message of the symbols of coded `text` from `position` on, with their alternatives unless None.

        What follows the text is its end.
        """
        message = pb.ScoreResponse(position=position, logprobs=logprobs.chosen.tolist())
        if alternatives is None:
            return message
        symbols = model.codec.symbols(text[position : position + len(logprobs)])
        if len(symbols) < len(logprobs):
            symbols = [*symbols, model.bundle.vocabulary.ends[0]]
        return message.SerializeToString() + self._encoder(model).encode(symbols, logprobs, alternatives, TOP)

    def token(self, model: Model, spec: StreamSpec | Resumption, snapshot: Snapshot) -> bytes:
        """Return the resume token of a stream that is at `snapshot`."""
        return self._tokens.seal(model.bundle, model.numerics, spec, snapshot)

    def _encoder(self, model: Model) -> LogprobEncoder:
        encoder = self._encoders.get(model)
        if encoder is None:
            encoder = self._encoders[model] = LogprobEncoder(model.bundle.vocabulary)
        return encoder


def event_of(output: pb.GenerateResponse | bytes) -> Sendable:
    """Wrap a GenerateResponse in an InteractResponse."""
    if isinstance(output, bytes):
        return _OUTPUT + varint(len(output)) + output
    return pb.InteractResponse(output=output)
