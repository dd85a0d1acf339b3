"""What goes out of a round: where a text ends, what is held back, and the snapshots that are due.

At the end of a round every row's state is at hand. One in the middle of it, because a stop was found there or what
follows may become one, is had by `rill.serve.engine.replay`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.serve.engine.decoder import Decoder
from rill.serve.engine.replay import ReplayPoint, replay, row_of
from rill.serve.engine.rows import ENDLESS, LOGPROBS, Round, Rows
from rill.serve.engine.states import Batch, States
from rill.serve.engine.stops import StopFinder
from rill.serve.engine.text_codec import Ids, TextCodec
from rill.serve.engine.types import FinishReason, Logprobs, Piece, Snapshot, State, StreamSpec

REPLAY_STEPS = 512  # steps: what is replayed at once is not much more, however long a stop string is


@dataclass
class RoundOutput:
    """What came of a round, by its columns; `texts` has those that are not simply what was made."""

    finished: dict[int, FinishReason] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class StopTracker:
    """Follows a stream that has stop strings.

    `held_back` counts the characters that were generated and not released; `position` is that of the first of them.
    They may be released all at once, so from position `snapshot_due` on a snapshot is wanted, wherever a round ends.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._finder = StopFinder(spec.stops, spec.include_stop, spec.partial_stop)
        self._every = spec.resume_every or ENDLESS
        self.held_back, self.position, self.snapshot_due = 0, spec.position, spec.position + self._every
        self._base: Snapshot | None = None  # no later than what is held back
        self._ids = np.zeros(0, np.int64)  # what has been read and made since

    @property
    def partial_stop(self) -> str:
        """The end of what has gone out that may be the beginning of a stop."""
        return self._finder.partial_stop

    def update(self, new: str, ids: Ids, is_complete: bool, entry: Callable[[], Snapshot]) -> tuple[str, bool]:
        """What goes out of a round that read and made `ids`, of them the characters `new`, and whether a stop ends it.

        `entry` is the snapshot before the round.
        """
        known = self.held_back + len(new)
        text, stopped = self._finder.feed(new)
        if is_complete and not stopped:
            text += self._finder.flush()
        self.position += len(text)
        self.held_back = known - len(text)
        if self.held_back > len(new):
            self._ids = np.concatenate([self._ids, ids])
        elif self.held_back:
            self._base, self._ids = entry(), ids
        return text, stopped

    @property
    def is_far_from_base(self) -> bool:
        """Whether many steps lie between the base and what is held back."""
        return self.held_back > 0 and len(self._ids) - self.held_back > REPLAY_STEPS

    def replay_point(self) -> ReplayPoint:
        """The end of what has gone out, where something is held back."""
        assert self._base is not None
        return ReplayPoint(self._base, self._ids[: len(self._ids) - self.held_back], self.position, self.partial_stop)

    def rebase(self, snapshot: Snapshot) -> None:
        """`snapshot` is of `replay_point`: nothing before it will be needed again."""
        self._base, self._ids = snapshot, self._ids[len(self._ids) - self.held_back :]

    def snapshot_taken(self) -> None:
        """A snapshot goes out with the text."""
        self.snapshot_due = self.position + self._every


class OutputProcessor:
    """Used by the engine thread only."""

    def __init__(self, decoder: Decoder, codec: TextCodec, rows: Rows, states: States) -> None:
        self._decoder, self._codec, self._rows, self._states = decoder, codec, rows, states
        self._trackers: dict[int, StopTracker] = {}  # by slot

    def enter(self, slot: int, spec: StreamSpec) -> None:
        """A stream has begun in `slot`."""
        if spec.stops:
            self._trackers[slot] = StopTracker(spec)

    def leave(self, slot: int) -> None:
        """The stream in `slot` is gone."""
        self._trackers.pop(slot, None)

    def snapshot(self, slot: int) -> Snapshot | None:
        """Of a stream between rounds, at the end of what has gone out; None if its prompt is not read yet."""
        if self._rows.table["prompt_left"][slot]:
            return None
        tracker = self._trackers.get(slot)
        if tracker and tracker.held_back:
            return replay(self._decoder, [tracker.replay_point()])[0]
        return self._snapshot_between_rounds(slot, self._states.row(slot))

    def collect(self, r: Round, entry_tokens: Ids, before: Batch, after: Batch, tokens: Ids) -> RoundOutput:
        """Take over a round that made `tokens` [time, rows], beginning with `entry_tokens` and `before`."""
        output = RoundOutput()
        reached = self._rows.advance(r, tokens).tolist()
        tracked = self._find_stops(r, entry_tokens, before, tokens, output) if self._trackers else {}
        snapshot_due = {column for column, tracker in tracked.items() if tracker.position >= tracker.snapshot_due}
        wanted = []
        for column in {*reached, *snapshot_due, *output.finished}:
            slot = int(r.slots[column])
            if column not in output.finished and self._rows.is_complete(slot):
                output.finished[column] = FinishReason.LENGTH
            if column not in output.finished:
                self._rows.set_next_stop(slot)
                if output.texts.get(column) == "":  # no message is sent for a snapshot alone
                    continue
            wanted.append(column)
        self._take_snapshots(r, after, tracked, wanted, output)
        return output

    def _find_stops(
        self, r: Round, entry_tokens: Ids, before: Batch, tokens: Ids, output: RoundOutput
    ) -> dict[int, StopTracker]:
        """Find the stops in a round. The watched streams in it, by column."""
        host = cache(lambda: {name: value.numpy() for name, value in before.items()})

        def entry(column: int, position: int) -> Snapshot:
            return Snapshot(position, int(entry_tokens[column]), row_of(host(), column))

        slots = r.slots.tolist()
        tracked = {column: self._trackers[slot] for column, slot in enumerate(slots) if slot in self._trackers}
        columns = list(tracked)
        texts = self._codec.decode(tokens[:, columns], r.prompted[columns], r.steps[columns])
        for (column, tracker), new in zip(tracked.items(), texts, strict=True):
            began = tracker.position + tracker.held_back
            output.texts[column], stopped = tracker.update(
                new,
                tokens[: r.steps[column], column],
                self._rows.is_complete(slots[column]),
                partial(entry, column, began),
            )
            if stopped:
                output.finished[column] = FinishReason.STOP
        return tracked

    def _take_snapshots(
        self, r: Round, after: Batch, tracked: Mapping[int, StopTracker], wanted: Sequence[int], output: RoundOutput
    ) -> None:
        """Take those that are `wanted`, by column, and replay what would become too much to be replayed at once."""
        held = {column for column in wanted if column in tracked and tracked[column].held_back}
        if len(held) < len(wanted):
            host = {name: value.numpy() for name, value in after.items()}
            for column in set(wanted) - held:
                output.snapshots[column] = self._snapshot_between_rounds(int(r.slots[column]), row_of(host, column))
        points = {
            column: tracker.replay_point()
            for column, tracker in tracked.items()
            if column in held or tracker.is_far_from_base
        }
        for column, snapshot in zip(points, replay(self._decoder, list(points.values())), strict=True):
            tracked[column].rebase(snapshot)
            if column in held:
                output.snapshots[column] = snapshot
        for column in tracked.keys() & output.snapshots.keys():
            tracked[column].snapshot_taken()

    def _snapshot_between_rounds(self, slot: int, state: State) -> Snapshot:
        """At the end of what was made, all of which has gone out."""
        row, tracker = self._rows.table[slot], self._trackers.get(slot)
        return Snapshot(int(row["generated"]), int(row["token"]), state, tracker.partial_stop if tracker else "")


def pieces(codec: TextCodec, r: Round, made: Mapping[str, NDArray[Any]], output: RoundOutput) -> list[Piece]:
    """What each row of a round has for its reader. `made` are the serving graph's outputs."""
    texts = codec.decode(made["tokens"], r.prompted, r.steps)
    if r.kind != LOGPROBS:
        return [Piece(output.texts.get(at, text), output.snapshots.get(at)) for at, text in enumerate(texts)]
    names = ("logprobs", "top_tokens", "top_logprobs")
    return [
        Piece(
            output.texts.get(at, text),
            output.snapshots.get(at),
            Logprobs(*(made[name][r.prompted[at] : r.steps[at], at] for name in names)),
        )
        for at, text in enumerate(texts)
    ]
