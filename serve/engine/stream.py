"""A stream: one text in the making, shared by the call that sends it and the engine that generates it."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rill.serve.engine.types import FinishReason, Logprobs, Piece, Snapshot, StreamSpec
from rill.serve.errors import ServeError

LOGPROBS_AT_ONCE = 64  # characters of a message


class Stream:
    """The event loop's side of a stream: text that was generated and not yet sent. Used on the event loop only.

    `position` is that of the next character to be sent, `text_position` the same in code points, where symbols are not
    characters; `slot` is the stream's slot in the engine.
    """

    has_reader = True  # who takes text before the end

    def __init__(self, spec: StreamSpec, slot: int) -> None:
        self.spec, self.slot = spec, slot
        self.position, self.text_position = spec.position, spec.text_position
        self.entered: float | None = None  # time.monotonic() of its first engine round
        self.first_char: float | None = None  # likewise, of the delivery of its first character
        self._until_snapshot: list[str] = []  # text up to the last snapshot that was delivered
        self._snapshot: Snapshot | None = None
        self._after_snapshot: list[str] = []
        self._logprobs: deque[Logprobs] = deque()  # of characters that are not sent yet
        self._reason: FinishReason | None = None
        self._error: ServeError | None = None
        self._has_output = asyncio.Event()

    @property
    def sent(self) -> int:
        """Characters that have been written to the reader."""
        return self.position - self.spec.position

    def deliver(self, piece: Piece, now: float) -> None:
        """Add what the engine generated.

        A snapshot or the first character wakes the reader at once; other text waits for `notify_reader`.
        """
        if piece.logprobs and self.spec.logprobs is not None:  # else another stream of the round wants them
            self._logprobs.append(piece.logprobs.of_most(self.spec.logprobs))
        if piece.text:
            self._after_snapshot.append(piece.text)
            if self.first_char is None:
                self.first_char = now
                self._has_output.set()
        if piece.snapshot:  # it replaces the one before it
            self._until_snapshot += self._after_snapshot
            self._after_snapshot.clear()
            self._snapshot = piece.snapshot
            self._has_output.set()

    def notify_reader(self) -> None:
        """Let the reader have the text so far."""
        if self._after_snapshot or self._until_snapshot:
            self._has_output.set()

    def finish(self, reason: FinishReason) -> None:
        """End the stream: nothing follows."""
        self._reason = reason
        self._has_output.set()

    def fail(self, error: ServeError) -> None:
        """End the stream with `error`, which is raised when all its text has been taken."""
        self._error = error
        self._has_output.set()

    async def next_piece(self) -> tuple[Piece, FinishReason | None]:
        """Wait for text; return it, and why the stream ended if this is the last of it. Raises the error of `fail`.

        The very first piece is one character, so that it can be sent at once. Others are all the text up to the last
        snapshot, if there is one: a reader is never further from a snapshot than the request says. Pieces with
        log-probabilities, which take long to write, are short.
        """
        await self._has_output.wait()
        if self._error and not (self._until_snapshot or self._after_snapshot or self._snapshot):
            raise self._error
        waiting = self._until_snapshot if self._snapshot else self._after_snapshot
        text, snapshot = "".join(waiting), self._snapshot
        waiting.clear()
        alternatives = self.spec.logprobs
        is_short = alternatives is not None and not (alternatives == 0 and self.spec.given)  # numbers alone are fast
        most = 1 if self.sent == 0 else LOGPROBS_AT_ONCE if is_short else len(text)
        if len(text) > most:
            waiting.append(text[most:])
            text, snapshot = text[:most], None
        else:
            self._snapshot = None
        is_all = not waiting and not self._after_snapshot
        if is_all and not (self._reason or self._error):
            self._has_output.clear()
        return Piece(text, snapshot, self._take_logprobs(len(text))), self._reason if is_all else None

    def end_logprobs(self) -> Logprobs | None:
        """After the last piece: those of the end symbol, if that ended the stream; it is in no text."""
        return self._logprobs[-1] if self._logprobs else None

    def _take_logprobs(self, count: int) -> Logprobs | None:
        """The log-probabilities of the next `count` characters."""
        if self.spec.logprobs is None or not count:
            return None
        parts: list[Logprobs] = []
        while count:
            part = self._logprobs.popleft()
            if len(part) > count:
                self._logprobs.appendleft(part.part(count, len(part)))
                part = part.part(0, count)
            parts.append(part)
            count -= len(part)
        names = ("chosen", "tokens", "values")
        return Logprobs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class WholeStream(Stream):
    """The event loop's side of a stream whose text is wanted at its end, and not before (`StreamSpec.is_whole`)."""

    has_reader = False

    def deliver(self, piece: Piece, now: float) -> None:
        """Add what the engine generated."""
        if piece.logprobs and self.spec.logprobs is not None:
            self._logprobs.append(piece.logprobs.of_most(0))
        self._after_snapshot.append(piece.text)
        self._snapshot = piece.snapshot

    async def end(self) -> tuple[Piece, FinishReason | None]:
        """Wait for the end; return the text, and why it ended. Raises the error of `fail`."""
        await self._has_output.wait()
        if self._error:
            raise self._error
        text = "".join(self._after_snapshot)
        return Piece(text, self._snapshot, self._take_logprobs(len(text))), self._reason


class TotalStream(Stream):
    """The event loop's side of a stream of which only the `total` of its log-probabilities is wanted, in nats.

    Nobody reads along: the engine waits for no reader, and delivers nothing before the end.
    """

    def __init__(self, spec: StreamSpec, slot: int) -> None:
        super().__init__(spec, slot)
        self.total = 0.0

    def deliver(self, piece: Piece, now: float) -> None:
        """Do nothing: where a stream ends early, its total is of no use."""

    async def end(self) -> FinishReason | None:
        """Wait for the end of the stream; return the reason. Raises the error of `fail`."""
        await self._has_output.wait()
        if self._error:
            raise self._error
        return self._reason


@dataclass(frozen=True)
class Delivery:
    """What has happened since the last delivery: the results of a round, and the streams that have left the engine.

    `pieces` are those of `streams`, in the same order. The slots of the streams in `ended` are free. They ended for the
    reason given, or (None) with `error`, after their pieces, or because their call left them.
    """

    streams: Sequence[Stream] = ()
    pieces: Callable[[], list[Piece]] = list  # decoded by the event loop, while the engine runs the next round
    ended: Mapping[Stream, FinishReason | None] = field(default_factory=dict)
    error: ServeError | None = None
    totals: Mapping[TotalStream, float] = field(default_factory=dict)  # of streams in `ended`
    readers: Sequence[Stream] = ()  # streams whose readers are to be notified
