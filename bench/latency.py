"""Measurements of readers: the times of one text as it arrives, the tally of many, and percentiles."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rill.bench.options import Objective
from rill.client.symbols import symbol_count
from rill.v1 import rill_pb2 as pb


@dataclass(frozen=True)
class Percentiles:
    """None where nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


def percentiles(seconds: Sequence[float], scale: float) -> Percentiles:
    """Compute the percentiles of `seconds`, times `scale`."""
    if not seconds:
        return Percentiles()
    return Percentiles(*(float(value) for value in scale * np.percentile(seconds, [50, 90, 99, 100])))


@dataclass
class Tally:
    """Counts and times of many texts, in seconds."""

    characters: int = 0
    messages: int = 0
    texts: int = 0  # complete ones
    on_time_characters: int = 0  # of texts that met the objective so far
    on_time_texts: int = 0  # complete ones that met it
    first: list[float] = field(default_factory=list)  # from the start of a text to its first character
    inter: list[float] = field(default_factory=list)  # between two messages, by the characters of the second
    queued: list[float] = field(default_factory=list)  # as the server reports it
    by_stream: Counter[int] = field(default_factory=Counter)  # characters


class TextTimes:
    """One text as it arrives. `start` is when it was due to be requested; the request may have been later."""

    def __init__(self, start: float, objective: Objective) -> None:
        self.start, self.characters, self.on_time, self.complete = start, 0, True, False
        self._last, self._objective = start, objective

    def received(self, message: pb.GenerateResponse, now: float, tally: Tally) -> int:
        """Count a message that arrived at `now`; returns its number of characters, or of symbols that are longer."""
        new = symbol_count(message)
        tally.messages += 1
        tally.characters += new
        if new:
            if self.characters:
                tally.inter.append((now - self._last) / new)
            else:
                tally.first.append(now - self.start)
            self.on_time = self.on_time and now <= self.start + self._objective.seconds(self.characters)
            if self.on_time:
                tally.on_time_characters += new
            self.characters += new
            self._last = now
        if message.finish_reason:
            self.complete = True
            tally.texts += 1
            tally.on_time_texts += self.on_time
            tally.queued.append(message.usage.queued_seconds)
        return new
