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
from rill.serve.engine.replay import Place, replay, row_of
from rill.serve.engine.rows import ENDLESS, LOGPROBS, Round, Rows
from rill.serve.engine.states import Batch, States
from rill.serve.engine.stops import StopFinder
from rill.serve.engine.stream import End, Logprobs, Piece, Snapshot, State, StreamSpec
from rill.serve.engine.text_codec import Ids, TextCodec

FAR = 512  # steps: what is replayed at once is not much more, however long a stop string is


@dataclass
class RoundOutput:
    """What came of a round, by its columns; `texts` has those that are not simply what was made."""

    ends: dict[int, End] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class StopTracker:
    """A stream with stops. `back` counts the characters that were made and have not gone out; `position` is that of the
    first of them.

    What is held back may go out all at once: from `due` on a snapshot is wanted, wherever the round ends.
    """

    def __init__(self, spec: StreamSpec) -> None:
        self._finder = StopFinder(spec.stops, spec.include_stop, spec.begun)
        self._every = spec.resume_every or ENDLESS
        self.back, self.position, self.due = 0, spec.position, spec.position + self._every
        self._base: Snapshot | None = None  # no later than what is held back
        self._ids = np.zeros(0, np.int64)  # what has been read and made since

    @property
    def begun(self) -> str:
        """The end of what has gone out that may be the beginning of a stop."""
        return self._finder.begun

    def take(self, new: str, ids: Ids, is_complete: bool, entry: Callable[[], Snapshot]) -> tuple[str, bool]:
        """What goes out of a round that read and made `ids`, of them the characters `new`, and whether a stop ends it.

        `entry` is the snapshot before the round.
        """
        known = self.back + len(new)
        text, stopped = self._finder.feed(new)
        if is_complete and not stopped:
            text += self._finder.flush()
        self.position += len(text)
        self.back = known - len(text)
        if self.back > len(new):
            self._ids = np.concatenate([self._ids, ids])
        elif self.back:
            self._base, self._ids = entry(), ids
        return text, stopped

    @property
    def is_far(self) -> bool:
        """Whether many steps lie between the base and what is held back."""
        return self.back > 0 and len(self._ids) - self.back > FAR

    def place(self) -> Place:
        """The end of what has gone out, where something is held back."""
        assert self._base is not None
        return Place(self._base, self._ids[: len(self._ids) - self.back], self.position, self.begun)

    def rebase(self, snapshot: Snapshot) -> None:
        """`snapshot` is of `place`: nothing before it will be needed again."""
        self._base, self._ids = snapshot, self._ids[len(self._ids) - self.back :]

    def taken(self) -> None:
        """A snapshot goes out with the text."""
        self.due = self.position + self._every


class OutputProcessor:
    """Used by the engine thread only."""

    def __init__(self, decoder: Decoder, codec: TextCodec, rows: Rows, states: States) -> None:
        self._decoder, self._codec, self._rows, self._states = decoder, codec, rows, states
        self._watches: dict[int, StopTracker] = {}  # by slot

    def enter(self, slot: int, spec: StreamSpec) -> None:
        """A stream has begun in `slot`."""
        if spec.stops:
            self._watches[slot] = StopTracker(spec)

    def leave(self, slot: int) -> None:
        """The stream in `slot` is gone."""
        self._watches.pop(slot, None)

    def snapshot(self, slot: int) -> Snapshot | None:
        """Of a stream between rounds, at the end of what has gone out; None if its prompt is not read yet."""
        if self._rows.table["prompt_left"][slot]:
            return None
        watch = self._watches.get(slot)
        if watch and watch.back:
            return replay(self._decoder, [watch.place()])[0]
        return self._between(slot, self._states.row(slot))

    def reap(self, r: Round, entry_tokens: Ids, before: Batch, after: Batch, tokens: Ids) -> RoundOutput:
        """Take over a round that made `tokens` [time, rows], beginning with `entry_tokens` and `before`."""
        harvest = RoundOutput()
        reached = self._rows.advance(r, tokens).tolist()
        watched = self._hold_back(r, entry_tokens, before, tokens, harvest) if self._watches else {}
        due = {column for column, watch in watched.items() if watch.position >= watch.due}
        wanted = []
        for column in {*reached, *due, *harvest.ends}:
            slot = int(r.slots[column])
            if column not in harvest.ends and self._rows.is_complete(slot):
                harvest.ends[column] = End.LENGTH
            if column not in harvest.ends:
                self._rows.go_on(slot)
                if harvest.texts.get(column) == "":  # no message is sent for a snapshot alone
                    continue
            wanted.append(column)
        self._take_snapshots(r, after, watched, wanted, harvest)
        return harvest

    def _hold_back(
        self, r: Round, entry_tokens: Ids, before: Batch, tokens: Ids, harvest: RoundOutput
    ) -> dict[int, StopTracker]:
        """Find the stops in a round. The watched streams in it, by column."""
        host = cache(lambda: {name: value.numpy() for name, value in before.items()})

        def entry(column: int, position: int) -> Snapshot:
            return Snapshot(position, int(entry_tokens[column]), row_of(host(), column))

        slots = r.slots.tolist()
        watched = {column: self._watches[slot] for column, slot in enumerate(slots) if slot in self._watches}
        columns = list(watched)
        texts = self._codec.decode(tokens[:, columns], r.prompted[columns], r.steps[columns])
        for (column, watch), new in zip(watched.items(), texts, strict=True):
            began = watch.position + watch.back
            harvest.texts[column], stopped = watch.take(
                new,
                tokens[: r.steps[column], column],
                self._rows.is_complete(slots[column]),
                partial(entry, column, began),
            )
            if stopped:
                harvest.ends[column] = End.STOP
        return watched

    def _take_snapshots(
        self, r: Round, after: Batch, watched: Mapping[int, StopTracker], wanted: Sequence[int], harvest: RoundOutput
    ) -> None:
        """Take those that are `wanted`, by column, and replay what would become too much to be replayed at once."""
        held = {column for column in wanted if column in watched and watched[column].back}
        if len(held) < len(wanted):
            host = {name: value.numpy() for name, value in after.items()}
            for column in set(wanted) - held:
                harvest.snapshots[column] = self._between(int(r.slots[column]), row_of(host, column))
        places = {column: watch.place() for column, watch in watched.items() if column in held or watch.is_far}
        for column, snapshot in zip(places, replay(self._decoder, list(places.values())), strict=True):
            watched[column].rebase(snapshot)
            if column in held:
                harvest.snapshots[column] = snapshot
        for column in watched.keys() & harvest.snapshots.keys():
            watched[column].taken()

    def _between(self, slot: int, state: State) -> Snapshot:
        """At the end of what was made, all of which has gone out."""
        row, watch = self._rows.table[slot], self._watches.get(slot)
        return Snapshot(int(row["made"]), int(row["token"]), state, watch.begun if watch else "")


def pieces(codec: TextCodec, r: Round, made: Mapping[str, NDArray[Any]], harvest: RoundOutput) -> list[Piece]:
    """What each row of a round has for its reader. `made` are the serving graph's outputs."""
    texts = codec.decode(made["tokens"], r.prompted, r.steps)
    if r.kind != LOGPROBS:
        return [Piece(harvest.texts.get(at, text), harvest.snapshots.get(at)) for at, text in enumerate(texts)]
    names = ("logprobs", "top_tokens", "top_logprobs")
    return [
        Piece(
            harvest.texts.get(at, text),
            harvest.snapshots.get(at),
            Logprobs(*(made[name][r.prompted[at] : r.steps[at], at] for name in names)),
        )
        for at, text in enumerate(texts)
    ]
