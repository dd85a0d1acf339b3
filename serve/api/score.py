"""Reading a given text: which log-probability the model gives each of its characters, and the state behind them.

The engine sees a stream like any other, only that its characters are given and not chosen (`StreamSpec.given`): it
takes its turns in the rounds, waits for its reader, and may be left or drained at any time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling
from rill.serve.engine.text_codec import GivenText
from rill.serve.engine.types import FinishReason, Snapshot, StreamSpec
from rill.serve.errors import DrainingError, RequestError
from rill.serve.models.model import Model
from rill.vocabulary import UnknownCharacterError

CHECKED_AT_ONCE = 65_536  # characters: half a millisecond, in which the event loop can do nothing else

Floats = NDArray[np.float32]


@dataclass
class Score:
    """Of the characters so far: how many, and the sum of their log-probabilities in nats."""

    chars: int = 0
    logprob: float = 0.0

    def add(self, logprobs: Floats) -> None:
        """The next characters, float32 [characters]."""
        self.chars += len(logprobs)
        self.logprob += float(logprobs.sum(dtype=np.float64))

    @property
    def bits_per_char(self) -> float:
        """0 without a character."""
        return self._nats_per_char / math.log(2)

    @property
    def perplexity(self) -> float:
        """1 without a character."""
        nats = self._nats_per_char
        return math.exp(nats) if nats < 709 else math.inf  # of float64

    @property
    def _nats_per_char(self) -> float:
        return -self.logprob / self.chars if self.chars else 0.0


async def given_text(text: str, model: Model, most: int, field: str = "text") -> GivenText:
    """`text` for `read`, of `most` characters at most. Raises RequestError if it is longer, or has an unknown one."""
    if len(text) > most:
        raise RequestError(field, f"{field} has {len(text)} characters; this server reads {most} at once")
    given = GivenText(text, model.codec)
    for start in range(0, len(text), CHECKED_AT_ONCE):
        try:
            given.ids(start, start + CHECKED_AT_ONCE)
        except UnknownCharacterError as error:
            raise RequestError(field, f"{field}: {error}") from None
        await asyncio.sleep(0)  # others may have waited
    return given


async def read(
    model: Model, slot: int, spec: StreamSpec, text: GivenText, write: Callable[[Floats], Awaitable[None]]
) -> Snapshot:
    """Read `text` where `spec` would begin to generate: the snapshot of its stream behind the text.

    `write` takes the log-probabilities of the characters in pieces, float32 [characters], in order; the engine is never
    far ahead of it. Raises DrainingError and EngineError.
    """
    if not text:
        return snapshot_of(spec, model)
    end = None
    with model.stream_in(slot, _reading(spec, text)) as stream:
        while end is None:
            piece, end = await stream.next_piece()
            if piece.logprobs:
                await write(piece.logprobs.chosen)
            model.mark_sent(stream, piece.text)
    if end is FinishReason.DRAINING:
        raise DrainingError(f"the server is going away; it has read {stream.sent} of {len(text)} characters")
    assert piece.snapshot
    return replace(piece.snapshot, position=spec.position)  # nothing was generated


def _reading(spec: StreamSpec, text: GivenText) -> StreamSpec:
    """What reads `text` from where `spec` begins, as plainly as possible: how to choose is of no interest."""
    return StreamSpec(
        prompt=spec.prompt,
        prompt_chars=spec.prompt_chars,
        sampling=Sampling(),
        seed=spec.seed,
        max_chars=len(text),
        logprobs=0,
        state=spec.state,
        given=text,
    )


def snapshot_of(spec: StreamSpec, model: Model) -> Snapshot:
    """Of a stream that has not begun; it has one character to read."""
    bundle, (token,) = model.bundle, spec.prompt[:].tolist()
    zeros = np.zeros((bundle.layers, bundle.hidden), np.float32)
    return Snapshot(spec.position, token, spec.state or {name: zeros for name, _ in bundle.states}, spec.partial_stop)
