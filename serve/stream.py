"""A stream: one text in the making, shared by the call that sends it and the engine that makes it."""

import asyncio
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from export.sampling import Sampling
from serve.errors import RillError


class End(Enum):
    """Why a stream ended."""

    LENGTH = "length"
    DRAINING = "draining"


@dataclass(frozen=True)
class Order:
    """What to generate: the stream as the engine needs it."""

    prompt: NDArray[np.int64]  # symbol ids that the model reads first: at least one
    prompt_chars: int  # of them that the request gave
    sampling: Sampling
    seed: int
    max_chars: int  # 0: no limit
    chars_per_second: float  # 0: as fast as the reader reads


class Stream:
    """The event loop's side of a stream: what has been made and not yet sent. Used on the event loop only.

    `sent` counts the characters that have been written to the reader; `slot` is the stream's place in the engine.
    """

    def __init__(self, order: Order, slot: int) -> None:
        self.order, self.slot = order, slot
        self.sent = 0
        self.entered: float | None = None  # time.monotonic() of its first engine round
        self.first_char: float | None = None  # ... of the delivery of its first character
        self._pieces: list[str] = []
        self._end: End | None = None
        self._error: RillError | None = None
        self._news = asyncio.Event()

    def deliver(self, text: str, now: float) -> None:
        """Add text that the engine made."""
        if self.first_char is None:
            self.first_char = now
        self._pieces.append(text)
        self._news.set()

    def finish(self, end: End) -> None:
        """No more text will come. The first reason stands."""
        self._end = self._end or end
        self._news.set()

    def fail(self, error: RillError) -> None:
        """The stream ends with an error, at once."""
        self._error = error
        self._news.set()

    async def take(self) -> tuple[str, End | None]:
        """The text that has piled up, and how the stream ended if this is all of it. Raises the error it failed with.

        The very first take gives one character, so that it can be sent at once.
        """
        await self._news.wait()
        if self._error:
            raise self._error
        text = "".join(self._pieces)
        if self.sent == 0 and len(text) > 1:
            text, rest = text[0], text[1:]
            self._pieces = [rest]
            return text, None
        self._pieces.clear()
        if self._end is None:
            self._news.clear()
        return text, self._end
