"""The live streams of an engine as arrays, one row a slot: a round reads and writes them as a whole.

Between two calls of the graph the processor's caches hold the model, not this: every NumPy call here costs ten times
what it does alone. So what belongs together is one structured array, and what a stream does not use is not looked at.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.sampling import uniforms
from serve.codec import Ids
from serve.stream import Order

ENDLESS = np.iinfo(np.int64).max // 2  # characters: more than will ever be made, and safe to add to
UNIFORMS = 1024  # drawn at a time, per row

ROW = np.dtype(
    [
        ("token", np.int64),  # the last character: the next one to be read
        ("prompt_left", np.int64),  # prompt characters that are still to be taken
        ("made", np.int64),  # characters generated so far
        ("limit", np.int64),  # ... and at most
        ("drawn", np.int64),  # position of the first of the row's uniforms
        ("served", np.int64),  # number of the last round that the row was in
        ("pace", np.float64),  # characters a second; infinity: as fast as they are read
        ("since", np.float64),  # when the pace began, time.monotonic()
        ("top_k", np.int64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("filtered", np.bool_),  # whether the row needs the variant with filters
    ]
)


@dataclass(frozen=True)
class Round:
    """One call of the serving graph: which rows, and how far each goes."""

    slots: Ids  # [rows]
    steps: Ids  # [rows], prompt characters included
    prompted: Ids  # [rows]: how many of the steps read a prompt
    filters: bool  # which variant of the graph

    @property
    def time(self) -> int:
        """Steps of the call."""
        return int(self.steps.max())


class Rows:
    """State and parameters by slot. All is the engine thread's own, except `read`, which only the event loop writes.

    `starting` are the slots whose stream has no character yet; `paced` and `filtered` count streams that have a pace,
    and that need filters.
    """

    def __init__(self, slots: int, layers: int, hidden: int, vocabulary: int) -> None:
        self.slots = slots
        # np.zeros and np.empty take memory only when a slot is first used.
        self.table = np.zeros(slots, ROW)
        self.read = np.zeros(slots, np.int64)  # characters that the stream's reader has taken
        self.state = np.zeros((layers, slots, hidden), np.float32)
        self.logit_bias = np.zeros((slots, vocabulary), np.float32)
        self.uniforms = np.empty((slots, UNIFORMS), np.float32)
        self.in_use = np.zeros(0, np.int64)  # slots
        self.starting: set[int] = set()
        self.paced = self.filtered = 0
        self._orders: dict[int, Order] = {}
        self._rounds = 0

    def enter(self, slot: int, order: Order, now: float) -> None:
        """Begin a stream in a free slot. (`read` is zeroed by the event loop, before.)"""
        self._orders[slot] = order
        self._count(order, +1)
        sampling, row = order.sampling, self.table[slot]
        row["token"] = order.prompt[0]
        row["prompt_left"] = len(order.prompt) - 1
        row["made"], row["served"] = 0, self._rounds
        row["limit"] = order.max_chars or ENDLESS
        row["pace"], row["since"] = order.chars_per_second or np.inf, now
        row["temperature"], row["top_k"] = sampling.temperature, sampling.top_k
        row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
        row["filtered"] = sampling.filtered
        if sampling.filtered:
            self.logit_bias[slot] = 0
            for symbol, bias in sampling.logit_bias.items():
                self.logit_bias[slot, symbol] = bias
        self.state[:, slot] = 0
        self._draw(slot)
        self.starting.add(slot)

    def leave(self, slot: int) -> None:
        """End the stream in `slot`."""
        self.starting.discard(slot)
        self._count(self._orders.pop(slot), -1)

    def _count(self, order: Order, change: int) -> None:
        self.in_use = np.fromiter(self._orders, np.int64, len(self._orders))
        self.paced += change * (order.chars_per_second > 0)
        self.filtered += change * order.sampling.filtered

    def room(self, now: float, buffer: int) -> Ids:
        """How many characters each slot in use may generate now, int64 [in_use]; 0 or less for a parked one.

        Bounded by the stream's length, by how far its reader is behind (at most `buffer` characters), and by its pace.
        """
        slots = self.in_use
        table = self.table[slots]
        room: Ids = np.minimum(table["limit"], self.read[slots] + buffer) - table["made"]
        if self.paced:
            with np.errstate(invalid="ignore"):  # no time at no pace: as much as there is room for
                due = np.nan_to_num((now - table["since"]) * table["pace"], nan=np.inf)
            room = np.minimum(room, np.minimum(due, ENDLESS).astype(np.int64) + 1 - table["made"])
        return room

    def next_due(self, now: float, buffer: int) -> float:
        """Seconds until the pace of some stream allows its next character; infinity if no stream waits for that."""
        waiting = self.in_use[self.table["made"][self.in_use] - self.read[self.in_use] < buffer]
        table = self.table[waiting][self.table["pace"][waiting] < np.inf]
        return float(max((table["since"] + table["made"] / table["pace"]).min(initial=np.inf) - now, 0.0))

    def feeds(self, r: Round) -> dict[str, NDArray[Any]]:
        """The inputs of the serving graph for a round."""
        slots, time = r.slots, r.time
        table = self.table[slots]
        cursor = table["made"] - table["drawn"]
        if cursor.max() + time > UNIFORMS:
            for slot in slots[cursor + time > UNIFORMS].tolist():
                self._draw(slot)
            cursor = table["made"] - self.table["drawn"][slots]
        forced = np.full((time, len(slots)), -1, np.int64)
        index = np.arange(time)[:, None] + cursor
        if self.starting:
            # A row's uniforms begin where its prompt ends: what stands before is not looked at.
            index = np.maximum(index - r.prompted, 0)
            for column in np.flatnonzero(r.prompted).tolist():
                prompt, reads = self._orders[int(slots[column])].prompt, int(r.prompted[column])
                at = len(prompt) - int(table["prompt_left"][column])
                forced[:reads, column] = prompt[at : at + reads]
        feeds: dict[str, NDArray[Any]] = {
            "token": np.ascontiguousarray(table["token"]),
            "state_h": self.state.take(slots, axis=1),
            "uniforms": self.uniforms[slots, index],
            "forced": forced,
            "steps": r.steps,
            "temperature": np.ascontiguousarray(table["temperature"]),
        }
        if r.filters:
            feeds |= {name: np.ascontiguousarray(table[name]) for name in ("top_k", "top_p", "min_p")}
            feeds["logit_bias"] = self.logit_bias[slots]
        return feeds

    def advance(self, r: Round, tokens: Ids, state: NDArray[np.float32]) -> Ids:
        """Take over a round's `tokens` [time, rows] and `state` [layers, rows, hidden]; the slots that are complete."""
        slots = r.slots
        self._rounds += 1
        self.state[:, slots] = state
        table = self.table[slots]
        table["token"] = tokens[r.steps - 1, np.arange(len(slots))]
        table["made"] += r.steps - r.prompted
        table["served"] = self._rounds
        if self.starting:
            table["prompt_left"] -= r.prompted
            self.starting.difference_update(slots[table["made"] > 0].tolist())
        self.table[slots] = table
        complete: Ids = slots[table["made"] == table["limit"]]
        return complete

    def _draw(self, slot: int) -> None:
        """The next block of uniforms, from the position where the row stands."""
        made = int(self.table["made"][slot])
        self.uniforms[slot] = uniforms(self._orders[slot].seed, made, UNIFORMS)
        self.table["drawn"][slot] = made
