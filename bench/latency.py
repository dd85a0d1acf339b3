"""What readers see: the times of one text as it arrives, the tally of many, percentiles, and an objective."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rill.v1 import rill_pb2 as pb


@dataclass(frozen=True)
class Percentiles:
    """None where nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


def percentiles(seconds: Sequence[float], scale: float) -> Percentiles:
    """Those of `seconds`, times `scale`."""
    if not seconds:
        return Percentiles()
    return Percentiles(*(float(value) for value in scale * np.percentile(seconds, [50, 90, 99, 100])))


@dataclass(frozen=True)
class Objective:
    """Character i of a text is there `first_ms + i * character_ms` after its start: so paced, a reader never waits."""

    first_ms: float = 50.0
    character_ms: float = 5.0

    def seconds(self, character: int) -> float:
        """When the character of this index has to be there."""
        return 1e-3 * (self.first_ms + character * self.character_ms)

    def __str__(self) -> str:
        return f"first character within {self.first_ms:g} ms, then {self.character_ms:g} ms a character"


@dataclass
class Tally:
    """What came of many texts; times in seconds."""

    characters: int = 0
    messages: int = 0
    texts: int = 0  # complete ones
    on_time_characters: int = 0  # of texts that had met the objective so far
    on_time_texts: int = 0  # complete ones that met it
    first: list[float] = field(default_factory=list)  # from the start of a text to its first character
    inter: list[float] = field(default_factory=list)  # between two messages, by the characters of the second
    queued: list[float] = field(default_factory=list)  # as the server reports it
    by_stream: Counter[int] = field(default_factory=Counter)  # characters


class Text:
    """One text as it arrives. `start` is when it was to be asked for: it may have been asked for later."""

    def __init__(self, start: float, objective: Objective) -> None:
        self.start, self.characters, self.on_time, self.complete = start, 0, True, False
        self._last, self._objective = start, objective

    def received(self, message: pb.GenerateResponse, now: float, tally: Tally) -> int:
        """Count a message that came at `now`; returns its characters."""
        fresh = len(message.text)
        tally.messages += 1
        tally.characters += fresh
        if fresh:
            if self.characters:
                tally.inter.append((now - self._last) / fresh)
            else:
                tally.first.append(now - self.start)
            self.on_time = self.on_time and now <= self.start + self._objective.seconds(self.characters)
            if self.on_time:
                tally.on_time_characters += fresh
            self.characters += fresh
            self._last = now
        if message.finish_reason:
            self.complete = True
            tally.texts += 1
            tally.on_time_texts += self.on_time
            tally.queued.append(message.usage.queued_seconds)
        return fresh
