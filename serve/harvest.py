"""What goes out of a round: where a text ends, what is held back, and the snapshots that are due.

At the end of a round every row's state is at hand. One in the middle of it, because a stop was found there or what
follows may become one, is had by `serve.replay`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from serve.codec import Codec, Ids
from serve.replay import Place, replay, row_of
from serve.rows import LOGPROBS, Round, Rows
from serve.runtime import Decoder
from serve.states import States
from serve.stops import StopFinder
from serve.stream import End, Logprobs, Order, Piece, Snapshot, State

FAR = 512  # steps: what is replayed at once is not much more, however long a stop string is

Batch = Mapping[str, ort.OrtValue]  # states by name, [layers, rows, hidden] each


@dataclass
class Harvest:
    """What came of a round, by its columns; `texts` has those that are not simply what was made."""

    ends: dict[int, End] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class Watch:
    """A stream with stops. `back` counts the characters that were made and have not gone out."""

    def __init__(self, order: Order) -> None:
        self._finder = StopFinder(order.stops, order.include_stop, order.begun)
        self.back = 0
        self._base: Snapshot | None = None  # no later than what is held back
        self._ids = np.zeros(0, np.int64)  # what has been read and made since

    def take(self, new: str, ids: Ids, is_complete: bool, entry: Callable[[], Snapshot]) -> tuple[str, bool]:
        """What goes out of a round that read and made `ids`, of them the characters `new`, and whether a stop ends it.

        `entry` is the snapshot before the round.
        """
        known = self.back + len(new)
        text, stopped = self._finder.feed(new)
        if is_complete and not stopped:
            text += self._finder.flush()
        self.back = known - len(text)
        if self.back > len(new):
            self._ids = np.concatenate([self._ids, ids])
        elif self.back:
            self._base, self._ids = entry(), ids
        return text, stopped

    @property
    def begun(self) -> str:
        """The end of what has gone out that may be the beginning of a stop."""
        return self._finder.begun

    @property
    def is_far(self) -> bool:
        """Whether the place at the end of what has gone out is many steps after the base."""
        return self.back > 0 and len(self._ids) - self.back > FAR

    def place(self, position: int) -> Place:
        """The place at the end of what has gone out, which is at `position`; something is held back."""
        assert self._base is not None
        return Place(self._base, self._ids[: len(self._ids) - self.back], position, self.begun)

    def rebase(self, snapshot: Snapshot) -> None:
        """`snapshot` is of `place`: what is before it will not be needed again."""
        self._base, self._ids = snapshot, self._ids[len(self._ids) - self.back :]


class Harvester:
    """Used by the engine thread only."""

    def __init__(self, decoder: Decoder, codec: Codec, rows: Rows, states: States) -> None:
        self._decoder, self._codec, self._rows, self._states = decoder, codec, rows, states
        self._watches: dict[int, Watch] = {}  # by slot

    def enter(self, slot: int, order: Order) -> None:
        """A stream has begun in `slot`."""
        if order.stops:
            self._watches[slot] = Watch(order)

    def leave(self, slot: int) -> None:
        """The stream in `slot` is gone."""
        self._watches.pop(slot, None)

    def snapshot(self, slot: int) -> Snapshot | None:
        """Of a stream between rounds, at the end of what has gone out; None if its prompt is not read yet."""
        if self._rows.table["prompt_left"][slot]:
            return None
        watch = self._watches.get(slot)
        if watch and watch.back:
            made = int(self._rows.table["made"][slot])
            return replay(self._decoder, [watch.place(made - watch.back)])[0]
        return self._between(slot, self._states.row(slot))

    def reap(self, r: Round, entry_tokens: Ids, before: Batch, after: Batch, tokens: Ids) -> Harvest:
        """Take over a round that made `tokens` [time, rows], beginning with `entry_tokens` and `before`."""
        harvest = Harvest()
        table = self._rows.table
        reached = self._rows.advance(r, tokens).tolist()
        back = self._hold_back(r, entry_tokens, before, tokens, harvest) if self._watches else {}
        here, earlier = [], {}
        for column in {*reached, *harvest.ends}:
            slot = int(r.slots[column])
            position = int(table["made"][slot]) - back.get(column, 0)
            if column not in harvest.ends:
                if table["made"][slot] == table["limit"][slot]:
                    harvest.ends[column] = End.LENGTH
                elif harvest.texts.get(column) == "":  # a message is not sent for a snapshot alone
                    self._rows.snapshot_soon(slot)
                    continue
                else:
                    self._rows.snapshot_after(slot, position)
            if back.get(column):
                earlier[column] = self._watches[slot].place(position)
            else:
                here.append(column)
        if here:
            host = {name: value.numpy() for name, value in after.items()}
            for column in here:
                harvest.snapshots[column] = self._between(int(r.slots[column]), row_of(host, column))
        if back:
            self._replay(r, back, earlier, harvest)
        return harvest

    def _replay(self, r: Round, back: Mapping[int, int], wanted: Mapping[int, Place], harvest: Harvest) -> None:
        """Take the snapshots at the places `wanted`, by column, and move the bases that are far away."""
        places = dict(wanted)
        for column in back:
            slot = int(r.slots[column])
            if column not in wanted and self._watches[slot].is_far:
                places[column] = self._watches[slot].place(int(self._rows.table["made"][slot]) - back[column])
        for column, snapshot in zip(places, replay(self._decoder, list(places.values())), strict=True):
            self._watches[int(r.slots[column])].rebase(snapshot)
            if column in wanted:
                harvest.snapshots[column] = snapshot

    def _between(self, slot: int, state: State) -> Snapshot:
        """At the end of what was made, all of which has gone out."""
        row, watch = self._rows.table[slot], self._watches.get(slot)
        return Snapshot(int(row["made"]), int(row["token"]), state, watch.begun if watch else "")

    def _hold_back(self, r: Round, entry_tokens: Ids, before: Batch, tokens: Ids, harvest: Harvest) -> dict[int, int]:
        """Find the stops in a round. How many characters each watched column has made and not given out."""
        table = self._rows.table
        host = cache(lambda: {name: value.numpy() for name, value in before.items()})

        def entry(column: int, made: int) -> Snapshot:
            return Snapshot(made, int(entry_tokens[column]), row_of(host(), column))

        columns = [column for column, slot in enumerate(r.slots.tolist()) if slot in self._watches]
        texts = self._codec.decode(tokens[:, columns], r.prompted[columns], r.steps[columns])
        back = {}
        for column, new in zip(columns, texts, strict=True):
            slot = int(r.slots[column])
            made, watch = int(table["made"][slot]), self._watches[slot]
            harvest.texts[column], stopped = watch.take(
                new,
                tokens[: r.steps[column], column],
                made == table["limit"][slot],
                partial(entry, column, made - len(new)),
            )
            back[column] = watch.back
            if stopped:
                harvest.ends[column] = End.STOP
        return back


def pieces(codec: Codec, r: Round, made: Mapping[str, NDArray[Any]], harvest: Harvest) -> list[Piece]:
    """What each row of a round has for its reader. `made` are the serving graph's outputs (`export.decode`)."""
    texts = codec.decode(made["tokens"], r.prompted, r.steps)
    if r.kind != LOGPROBS:
        return [Piece(harvest.texts.get(at, text), harvest.snapshots.get(at)) for at, text in enumerate(texts)]
    names = ("logprobs", "top_tokens", "top_logprobs")
    return [
        Piece(
            harvest.texts.get(at, text),
            harvest.snapshots.get(at),
            Logprobs(*(made[name][r.prompted[at] : r.steps[at], at].copy() for name in names)),
        )
        for at, text in enumerate(texts)
    ]
