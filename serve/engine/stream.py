"""A stream: one text in the making, shared by the call that sends it and the engine that makes it."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling
from rill.serve.engine.text_codec import GivenText, LongPrompt
from rill.serve.errors import ServeError

LOGPROBS_AT_ONCE = 64  # characters of a message

State = Mapping[str, NDArray[np.float32]]  # by name ("state_h", ...), [layers, hidden] each


class End(Enum):
    """Why a stream ended."""

    LENGTH = "length"
    STOP = "stop"
    DRAINING = "draining"
    PAUSED = "paused"


@dataclass(frozen=True)
class Snapshot:
    """The recurrent state at a place in a text, from which the same text goes on.

    `position` counts the generated characters before that place; `token` is the id of the last character, which
    `state` has not read yet; `begun` is the end of the text that may be the beginning of a stop string.
    """

    position: int
    token: int
    state: State
    begun: str = ""


@dataclass(frozen=True)
class StreamSpec:
    """What to generate: the stream as the engine needs it."""

    prompt: NDArray[np.int64] | LongPrompt  # symbol ids that the model reads first: at least one
    prompt_chars: int  # of them that the request gave
    sampling: Sampling
    seed: int
    max_chars: int  # 0: no limit
    chars_per_second: float = 0.0  # 0: as fast as the reader reads
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    logprobs: int | None = None  # alternatives to each character; None: no log-probabilities
    resume_every: int = 0  # characters; 0: no snapshot but the last
    position: int = 0  # of the first character among all of the stream, resumes included
    state: State | None = None  # that reads the prompt; None: zeros
    begun: str = ""  # the end of the text before `position` that may be the beginning of a stop
    given: GivenText | None = None  # what the characters are, `max_chars` of them, instead of chosen ones


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of some characters in a row, in nats, and the most probable ones in the place of each."""

    chosen: NDArray[np.float32]  # [characters]
    tokens: NDArray[np.integer[Any]]  # [characters, alternatives], the most probable first
    values: NDArray[np.float32]  # likewise

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, start: int, end: int) -> "Logprobs":
        """Those of the characters `start` to `end`."""
        return Logprobs(self.chosen[start:end], self.tokens[start:end], self.values[start:end])

    def of_most(self, alternatives: int) -> "Logprobs":
        """A copy with so many alternatives at most, as small as can be: a stream waits with hundreds for its reader."""
        tokens, values = self.tokens[:, :alternatives], self.values[:, :alternatives]
        return Logprobs(self.chosen.copy(), tokens.astype(np.int32), values.copy())


@dataclass(frozen=True)
class Piece:
    """Text that goes out together; `snapshot` is of its end, `logprobs` of the characters made meanwhile.

    What may become a stop string is held back, so these may be more than the characters of the text.
    """

    text: str
    snapshot: Snapshot | None = None
    logprobs: Logprobs | None = None


class Stream:
    """The event loop's side of a stream: what has been made and not yet sent. Used on the event loop only.

    `position` is that of the next character to be sent; `slot` is the stream's place in the engine.
    """

    def __init__(self, spec: StreamSpec, slot: int) -> None:
        self.spec, self.slot = spec, slot
        self.position = spec.position
        self.entered: float | None = None  # time.monotonic() of its first engine round
        self.first_char: float | None = None  # ... of the delivery of its first character
        self._known: list[str] = []  # text up to the last snapshot that has come
        self._snapshot: Snapshot | None = None
        self._rest: list[str] = []  # text after it
        self._logprobs: deque[Logprobs] = deque()  # of characters that are not sent yet
        self._end: End | None = None
        self._error: ServeError | None = None
        self._news = asyncio.Event()

    @property
    def sent(self) -> int:
        """Characters that have been written to the reader."""
        return self.position - self.spec.position

    def deliver(self, piece: Piece, now: float) -> None:
        """Add what the engine made. The reader is told of a snapshot or the first character at once, else by `tell`."""
        if piece.logprobs:
            self._logprobs.append(piece.logprobs.of_most(self.spec.logprobs or 0))
        if piece.text:
            self._rest.append(piece.text)
            if self.first_char is None:
                self.first_char = now
                self._news.set()
        if piece.snapshot:  # those before it are of no more use
            self._known += self._rest
            self._rest.clear()
            self._snapshot = piece.snapshot
            self._news.set()

    def tell(self) -> None:
        """Let the reader have what there is."""
        if self._rest or self._known:
            self._news.set()

    def finish(self, end: End) -> None:
        """No more will come."""
        self._end = end
        self._news.set()

    def fail(self, error: ServeError) -> None:
        """No more will come, because of `error`: it is raised when all that there is was taken."""
        self._error = error
        self._news.set()

    async def take(self) -> tuple[Piece, End | None]:
        """What has piled up, and how the stream ended if this is all of it. Raises the error that it failed with.

        The very first take gives one character, so that it can be sent at once. Others give everything up to the last
        snapshot, if there is one: nobody is ever further from one than the request says. With log-probabilities, which
        take long to write, not too much at once.
        """
        await self._news.wait()
        if self._error and not (self._known or self._rest or self._snapshot):
            raise self._error
        waiting = self._known if self._snapshot else self._rest
        text, snapshot = "".join(waiting), self._snapshot
        waiting.clear()
        is_short = self.spec.logprobs is not None and not self.spec.given  # numbers alone are written fast
        most = 1 if self.sent == 0 else LOGPROBS_AT_ONCE if is_short else len(text)
        if len(text) > most:
            waiting.append(text[most:])
            text, snapshot = text[:most], None
        else:
            self._snapshot = None
        is_all = not waiting and not self._rest
        if is_all and not (self._end or self._error):
            self._news.clear()
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
