"""Reading a given text: the log-probability of each of its characters, and the state after it.

For the engine this is a stream like any other, except that its characters are given, not chosen (`StreamSpec.given`):
it takes part in the rounds, waits for its reader, and can be left or drained at any time.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling
from rill.serve.engine.states import initial_state
from rill.serve.engine.text_codec import GivenText
from rill.serve.engine.types import FinishReason, Logprobs, Snapshot, StreamSpec
from rill.serve.errors import DrainingError
from rill.serve.models.model import Model

Floats = NDArray[np.float32]

# Of a character before which the model has read nothing.
NO_LOGPROB = Logprobs(np.array([np.nan], np.float32), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.float32))


@dataclass
class Score:
    """The number of characters so far, and the sum of their log-probabilities in nats."""

    chars: int = 0
    logprob: float = 0.0

    def add(self, logprobs: Floats) -> None:
        """Add the next characters, float32 [characters]: one after another, as if all of them came at once."""
        self.chars += len(logprobs)
        terms = np.empty(len(logprobs) + 1)
        terms[0], terms[1:] = self.logprob, logprobs
        self.logprob = float(np.add.accumulate(terms)[-1])

    async def collect(self, logprobs: Logprobs) -> None:
        """Add them; for `read`."""
        self.add(logprobs.chosen)

    @property
    def bits_per_char(self) -> float:
        """Return the mean information of a character; 0 without characters."""
        return self._nats_per_char / math.log(2)

    @property
    def perplexity(self) -> float:
        """Return the perplexity per character; 1 without characters."""
        nats = self._nats_per_char
        return math.exp(nats) if nats < 709 else math.inf  # the largest exponent of float64

    @property
    def _nats_per_char(self) -> float:
        return -self.logprob / self.chars if self.chars else 0.0


async def read(
    model: Model,
    slot: int,
    spec: StreamSpec,
    text: str,
    write: Callable[[Logprobs], Awaitable[None]],
    include_end: bool = False,
) -> Snapshot:
    """Read `text` where `spec` would begin to generate; returns the snapshot after the text, which has been checked.

    The first `spec.prompt_chars` characters of the text are the prompt. `write` takes the log-probabilities of the
    others in pieces, in order, and with `include_end` that of the end; the engine is never far ahead of it. Raises
    DrainingError and EngineError.
    """
    ends = model.bundle.vocabulary.end_ids if include_end else ()
    given = GivenText(text, model.codec, spec.prompt_chars, end=ends[0] if ends else None)
    if not given:
        return snapshot_of(spec, model)
    snapshot, of_end = await _read_given(model, slot, reading(spec, given), write)
    if of_end:
        for end in ends[1:]:  # each instead of the first
            at = replace(spec, prompt=np.array([snapshot.token]), prompt_chars=0, state=snapshot.state)
            other = GivenText("", model.codec, end=end)
            _, of_other = await _read_given(model, slot, reading(at, other), write)
            assert of_other
            of_end = replace(of_end, chosen=np.logaddexp(of_end.chosen, of_other.chosen))
        await write(of_end)
    # Nothing was generated.
    return replace(
        snapshot,
        position=spec.position,
        text_position=spec.text_position,
        automaton_state=spec.automaton_state,
    )


async def _read_given(
    model: Model, slot: int, spec: StreamSpec, write: Callable[[Logprobs], Awaitable[None]]
) -> tuple[Snapshot, Logprobs | None]:
    """Read the given text of `spec`; returns the snapshot after it, and the log-probabilities of its end, if any."""
    end = None
    with model.stream_in(slot, spec) as stream:
        while end is None:
            piece, end = await stream.next_piece()
            if piece.logprobs:
                await write(piece.logprobs)
            model.mark_sent(stream, piece.text)
    if end is FinishReason.DRAINING:
        assert spec.given
        characters = f"{spec.prompt_chars + stream.sent} of {len(spec.given.text)} characters"
        raise DrainingError(f"the server is shutting down; it has read {characters}")
    assert piece.snapshot
    return piece.snapshot, stream.end_logprobs()


def reading(spec: StreamSpec, text: GivenText) -> StreamSpec:
    """Return a spec that reads `text` from where `spec` begins; how characters would be chosen does not matter."""
    return StreamSpec(
        prompt=spec.prompt,
        prompt_chars=spec.prompt_chars,
        sampling=Sampling(),
        seed=spec.seed,
        max_chars=len(text),
        logprobs=0 if spec.logprobs is None else max(spec.logprobs, 1),  # 0: numbers alone
        state=spec.state,
        given=text,
    )


def snapshot_of(spec: StreamSpec, model: Model) -> Snapshot:
    """Return the snapshot of a stream that has not begun and has one character to read."""
    (token,) = spec.prompt[:].tolist()
    state = spec.state or initial_state(model.bundle)
    return Snapshot(spec.position, token, state, spec.partial_stop, spec.text_position, spec.automaton_state)
