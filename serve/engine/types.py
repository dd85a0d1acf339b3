"""What the stages of the engine pass to each other, and to the layers above."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling
from rill.serve.constraints.automaton import Automaton
from rill.serve.engine.text_codec import GivenText, LongPrompt

# By name ("state_h", ...), float32 [layers, hidden] each; models with n-gram tables: and "context", int64 [symbols].
State = Mapping[str, NDArray[Any]]


class FinishReason(Enum):
    """Why a stream ended."""

    LENGTH = "length"
    STOP = "stop"
    DRAINING = "draining"
    PAUSED = "paused"


@dataclass(frozen=True)
class Snapshot:
    """The recurrent state at a position of a text, from which the same text continues.

    `position` is the number of generated characters before it; `token` is the id of the last character, which `state`
    has not read yet; `partial_stop` is the end of the text if that may be the beginning of a stop string.
    `text_position` is `position` in code points, where symbols are not characters; the engine does not know it.
    `automaton_state` is that of a stream's automaton there, if it has one.
    """

    position: int
    token: int
    state: State
    partial_stop: str = ""
    text_position: int = 0
    automaton_state: int = 0


@dataclass(frozen=True)
class StreamSpec:
    """What to generate: a request as the engine needs it. All texts are coded (`rill.serve.engine.text_codec`)."""

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
    position: int = 0  # of the first character in the whole text, which other calls may have begun
    state: State | None = None  # that reads the prompt; None: zeros
    partial_stop: str = ""  # the end of the text before `position` if that may be the beginning of a stop
    given: GivenText | None = None  # the characters, `max_chars` of them, where none are chosen
    only_total: bool = False  # of the log-probabilities of `given`
    text_position: int = 0  # like `position`, in code points, where symbols are not characters
    automaton: Automaton | None = None  # of the constraint, if there is one
    automaton_state: int = 0  # before the first character
    is_whole: bool = False  # nobody reads along: the text is wanted at its end, and no snapshot
    constraint: bytes = b""  # what the automaton was made from, for tokens: a serialised rill.v1.Constraint

    @property
    def is_constrained(self) -> bool:
        """Whether the automaton moves: it covers the characters that are chosen, not those that are given."""
        return self.automaton is not None and self.given is None


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of consecutive characters, in nats, and the most probable alternatives to each."""

    chosen: NDArray[np.float32]  # [characters]
    tokens: NDArray[np.integer[Any]]  # [characters, alternatives], the most probable first
    values: NDArray[np.float32]  # [characters, alternatives]

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, start: int, end: int) -> "Logprobs":
        """Those of the characters `start` to `end`."""
        return Logprobs(self.chosen[start:end], self.tokens[start:end], self.values[start:end])

    def of_most(self, alternatives: int) -> "Logprobs":
        """A copy with so many alternatives at most, as small as possible: a stream keeps hundreds for its reader."""
        tokens, values = self.tokens[:, :alternatives], self.values[:, :alternatives]
        return Logprobs(self.chosen.copy(), tokens.astype(np.int32), values.copy())


@dataclass(frozen=True)
class Piece:
    """Coded text that is sent together; `snapshot` is of its end, `logprobs` of the characters generated with it.

    `logprobs` may be of more characters than the text has: text that may become a stop string is held back, and an end
    symbol is in no text.
    """

    text: str
    snapshot: Snapshot | None = None
    logprobs: Logprobs | None = None
