"""Stop strings: find the first complete one in a text, and hold back text that may be the beginning of one."""

from collections.abc import Callable, Sequence

import numpy as np

from rill.serve.engine.replay import ReplayPoint
from rill.serve.engine.rows import ENDLESS
from rill.serve.engine.text_codec import Ids
from rill.serve.engine.types import Snapshot, StreamSpec

REPLAY_STEPS = 512  # about as many are replayed at once, however long a stop string is


class StopFinder:
    """Looks for `stops` in a text that arrives in parts; with `include`, the stop is part of the text.

    Text that may be the beginning of a stop is held back until that is known. `partial_stop` is the end of the released
    text if that may be such a beginning: it was released nevertheless, because the text had reached its limit.
    """

    def __init__(self, stops: Sequence[str], include: bool = False, partial_stop: str = "") -> None:
        self._stops, self._include = stops, include
        self._tail, self._released = partial_stop, len(partial_stop)  # so many characters of the tail are released

    @property
    def partial_stop(self) -> str:
        """The end of the released text that may be the beginning of a stop."""
        return self._tail[: self._released]

    def feed(self, new: str) -> tuple[str, bool]:
        """Add `new` to the text; return what is released, and whether a stop ends the text.

        The first stop to be complete ends the text; of several, the longest.
        """
        text, released = self._tail + new, self._released
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self._tail = "" if self._include else text[start:released]
            self._released = len(self._tail)
            return text[released : end if self._include else start], True
        start = len(text) - max(_partial_length(text, stop) for stop in self._stops)
        self._tail, self._released = text[start:], max(released - start, 0)
        return text[released:start], False

    def flush(self) -> str:
        """Release the text that is held back."""
        rest, self._released = self._tail[self._released :], len(self._tail)
        return rest


def _partial_length(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, which is not in the text."""
    at = text.find(stop[0], max(len(text) - len(stop), 0))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0


class StopTracker:
    """Follows a stream that has stop strings.

    `held_back` counts the characters that were generated and not released; `position` is that of the first of them.
    They may be released all at once, so from position `snapshot_due` on a snapshot is wanted, wherever a round ends.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._finder = StopFinder(spec.stops, spec.include_stop, spec.partial_stop)
        self._every, self._automaton = spec.resume_every or ENDLESS, spec.automaton
        self.held_back, self.position, self.snapshot_due = 0, spec.position, spec.position + self._every
        self._base: Snapshot | None = None  # no later than the text that is held back
        self._ids = np.zeros(0, np.int64)  # read and generated since

    @property
    def partial_stop(self) -> str:
        """The end of the released text that may be the beginning of a stop."""
        return self._finder.partial_stop

    def update(self, new: str, ids: Ids, is_complete: bool, entry: Callable[[], Snapshot]) -> tuple[str, bool]:
        """Add a round that read and generated `ids` [steps]; return what is released, and whether a stop ends the text.

        `new` are the characters it generated, `entry` gives the snapshot before it.
        """
        unreleased = self.held_back + len(new)
        text, stopped = self._finder.feed(new)
        if is_complete and not stopped:
            text += self._finder.flush()
        self.position += len(text)
        self.held_back = unreleased - len(text)
        if self.held_back > len(new):
            self._ids = np.concatenate([self._ids, ids])
        elif self.held_back:
            self._base, self._ids = entry(), ids
        return text, stopped

    @property
    def is_far_from_base(self) -> bool:
        """Whether many steps lie between the base and the text that is held back."""
        return self.held_back > 0 and len(self._ids) - self.held_back > REPLAY_STEPS

    def replay_point(self) -> ReplayPoint:
        """The end of the released text, where some text is held back."""
        assert self._base is not None
        ids = self._ids[: len(self._ids) - self.held_back]
        return ReplayPoint(self._base, ids, self.position, self.partial_stop, self._automaton)

    def rebase(self, snapshot: Snapshot) -> None:
        """Take the snapshot of `replay_point` as the base: nothing before it will be needed again."""
        self._base, self._ids = snapshot, self._ids[len(self._ids) - self.held_back :]

    def snapshot_taken(self) -> None:
        """Plan the next snapshot: one goes out with the text."""
        self.snapshot_due = self.position + self._every
