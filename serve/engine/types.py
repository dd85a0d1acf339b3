"""What the stages of the engine pass to each other, and to the layers above."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling
from rill.serve.engine.text_codec import GivenText, LongPrompt

State = Mapping[str, NDArray[np.float32]]  # by name ("state_h", ...), [layers, hidden] each


class FinishReason(Enum):
    """Why a stream ended."""

    LENGTH = "length"
    STOP = "stop"
    DRAINING = "draining"
    PAUSED = "paused"


@dataclass(frozen=True)
class Snapshot:
    """The recurrent state at a place in a text, from which the same text goes on.

    `position` counts the generated characters before that place; `token` is the id of the last character, which
    `state` has not read yet; `partial_stop` is the end of the text that may be the beginning of a stop string.
    """

    position: int
    token: int
    state: State
    partial_stop: str = ""


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
    partial_stop: str = ""  # the end of the text before `position` that may be the beginning of a stop
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
