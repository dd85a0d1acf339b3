"""A stream: one text in the making, shared by the call that sends it and the engine that generates it."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rill.serve.engine.types import FinishReason, Logprobs, Piece, Snapshot, StreamSpec
from rill.serve.errors import ServeError

LOGPROBS_AT_ONCE = 64  # characters of a message


class Stream:
    """The event loop's side of a stream: what has been made and not yet sent. Used on the event loop only.

    `position` is that of the next character to be sent; `slot` is the stream's place in the engine.
    """

    def __init__(self, spec: StreamSpec, slot: int) -> None:
        self.spec, self.slot = spec, slot
        self.position = spec.position
        self.entered: float | None = None  # time.monotonic() of its first engine round
        self.first_char: float | None = None  # ... of the delivery of its first character
        self._up_to_snapshot: list[str] = []  # text up to the last snapshot that has come
        self._snapshot: Snapshot | None = None
        self._after_snapshot: list[str] = []  # text after it
        self._logprobs: deque[Logprobs] = deque()  # of characters that are not sent yet
        self._end: FinishReason | None = None
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
        if piece.logprobs:
            self._logprobs.append(piece.logprobs.of_most(self.spec.logprobs or 0))
        if piece.text:
            self._after_snapshot.append(piece.text)
            if self.first_char is None:
                self.first_char = now
                self._has_output.set()
        if piece.snapshot:  # those before it are of no more use
            self._up_to_snapshot += self._after_snapshot
            self._after_snapshot.clear()
            self._snapshot = piece.snapshot
            self._has_output.set()

    def notify_reader(self) -> None:
        """Let the reader have what there is."""
        if self._after_snapshot or self._up_to_snapshot:
            self._has_output.set()

    def finish(self, end: FinishReason) -> None:
        """No more will come."""
        self._end = end
        self._has_output.set()

    def fail(self, error: ServeError) -> None:
        """No more will come, because of `error`: it is raised when all that there is was taken."""
        self._error = error
        self._has_output.set()

    async def next_piece(self) -> tuple[Piece, FinishReason | None]:
        """What has piled up, and how the stream ended if this is all of it. Raises the error that it failed with.

        The very first take gives one character, so that it can be sent at once. Others give everything up to the last
        snapshot, if there is one: nobody is ever further from one than the request says. With log-probabilities, which
        take long to write, not too much at once.
        """
        await self._has_output.wait()
        if self._error and not (self._up_to_snapshot or self._after_snapshot or self._snapshot):
            raise self._error
        waiting = self._up_to_snapshot if self._snapshot else self._after_snapshot
        text, snapshot = "".join(waiting), self._snapshot
        waiting.clear()
        is_short = self.spec.logprobs is not None and not self.spec.given  # numbers alone are written fast
        most = 1 if self.sent == 0 else LOGPROBS_AT_ONCE if is_short else len(text)
        if len(text) > most:
            waiting.append(text[most:])
            text, snapshot = text[:most], None
        else:
            self._snapshot = None
        is_all = not waiting and not self._after_snapshot
        if is_all and not (self._end or self._error):
            self._has_output.clear()
        return Piece(text, snapshot, self._take_logprobs(len(text))), self._end if is_all else None

    def _take_logprobs(self, count: int) -> Logprobs | None:
        """Those of the next `count` characters."""
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


@dataclass(frozen=True)
class Delivery:
    """What has happened since the last one: what a round made, and the streams that are gone.

    `pieces` are those of `streams`, in the same order. The streams in `ended` have left the engine, and their slots are
    free: because of `error`, after their pieces, because they were left (None), or at their end.
    """

    streams: Sequence[Stream]
    pieces: Callable[[], list[Piece]]  # decoded by the event loop, while the engine runs the next round
    ended: Mapping[Stream, FinishReason | None]
    error: ServeError | None = None
    readers: Sequence[Stream] = ()  # who are to be told that there is text
