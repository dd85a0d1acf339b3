"""The live streams of an engine as arrays, one row a slot: a round reads and writes them as a whole."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.sampling import uniforms
from serve.codec import Ids
from serve.stream import Order

ENDLESS = np.iinfo(np.int64).max // 2  # characters: more than will ever be made, and safe to add to
UNIFORMS = 1024  # drawn at a time, per row


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
    """State and parameters by slot. All is the engine thread's own, except `read`, which only the event loop writes."""

    def __init__(self, slots: int, layers: int, hidden: int, vocabulary: int) -> None:
        self.slots = slots
        # np.zeros and np.empty take memory only when a slot is first used.
        self.state = np.zeros((layers, slots, hidden), np.float32)
        self.token = np.zeros(slots, np.int64)
        self.running = np.zeros(slots, bool)
        self.filtered = np.zeros(slots, bool)
        self.temperature = np.zeros(slots, np.float32)
        self.top_k = np.zeros(slots, np.int64)
        self.top_p = np.zeros(slots, np.float32)
        self.min_p = np.zeros(slots, np.float32)
        self.logit_bias = np.zeros((slots, vocabulary), np.float32)
        self.prompt_left = np.zeros(slots, np.int64)  # prompt characters that are still to be taken
        self.left = np.zeros(slots, np.int64)  # characters that are still to be generated
        self.made = np.zeros(slots, np.int64)
        self.read = np.zeros(slots, np.int64)
        self.served = np.zeros(slots, np.int64)  # number of the last round that the row was in
        self.pace = np.zeros(slots, np.float64)  # characters a second; infinity for unpaced ones
        self.since = np.zeros(slots, np.float64)  # when the pace began
        self._uniforms = np.empty((slots, UNIFORMS), np.float32)
        self._cursor = np.zeros(slots, np.int64)  # into the row of `_uniforms`
        self._prompts: dict[int, Ids] = {}
        self._seeds = np.zeros(slots, np.uint64)
        self._rounds = 0

    def enter(self, slot: int, order: Order, now: float) -> None:
        """Begin a stream in a free slot. (`read` is zeroed by the event loop, before.)"""
        sampling = order.sampling
        self.state[:, slot] = 0
        self.token[slot] = order.prompt[0]
        self._prompts[slot] = order.prompt
        self.prompt_left[slot] = len(order.prompt) - 1
        self.filtered[slot] = sampling.filtered
        self.temperature[slot] = sampling.temperature
        self.top_k[slot] = sampling.top_k
        self.top_p[slot] = sampling.top_p
        self.min_p[slot] = sampling.min_p
        if sampling.filtered:
            self.logit_bias[slot] = 0
            for symbol, bias in sampling.logit_bias.items():
                self.logit_bias[slot, symbol] = bias
        self.left[slot] = order.max_chars or ENDLESS
        self.made[slot] = self.served[slot] = 0
        self.pace[slot] = order.chars_per_second or np.inf
        self.since[slot] = now
        self._seeds[slot] = order.seed
        self._draw(slot)
        self.running[slot] = True

    def leave(self, slot: int) -> None:
        """End the stream in `slot`, if there is one."""
        self.running[slot] = False
        self._prompts.pop(slot, None)

    def room(self, now: float, buffer: int) -> tuple[Ids, Ids]:
        """The slots in use and how many characters each may generate now: 0 or less for a parked one.

        Bounded by the stream's length, by how far its reader is behind (at most `buffer` characters), and by its pace.
        """
        slots = np.flatnonzero(self.running)
        pace, made = self.pace[slots], self.made[slots]
        room = np.minimum(self.left[slots], buffer - (made - self.read[slots]))
        if (paced := pace < np.inf).any():
            due = ((now - self.since[slots[paced]]) * pace[paced]).astype(np.int64) + 1 - made[paced]
            room[paced] = np.minimum(room[paced], due)
        return slots, room

    def next_due(self, now: float, buffer: int) -> float:
        """Seconds until the pace of some stream allows its next character; infinity if no stream waits for that."""
        slots = np.flatnonzero(self.running & (self.pace < np.inf) & (self.made - self.read < buffer))
        due = self.since[slots] + self.made[slots] / self.pace[slots]
        return float(max(due.min(initial=np.inf) - now, 0.0))

    def feeds(self, r: Round) -> dict[str, NDArray[Any]]:
        """The inputs of the serving graph for a round."""
        slots, time, count = r.slots, r.time, len(r.slots)
        for slot in slots[self._cursor[slots] + time > UNIFORMS].tolist():
            self._draw(slot)
        forced = np.full((time, count), -1, np.int64)
        for column in np.flatnonzero(r.prompted).tolist():
            slot, reads = int(slots[column]), int(r.prompted[column])
            prompt = self._prompts[slot]
            at = len(prompt) - int(self.prompt_left[slot])
            forced[:reads, column] = prompt[at : at + reads]
        # A row's uniforms begin where its prompt ends: what stands before is not looked at.
        cursor = np.maximum(np.arange(time)[:, None] + (self._cursor[slots] - r.prompted), 0)
        feeds: dict[str, NDArray[Any]] = {
            "token": self.token[slots],
            "state_h": self.state.take(slots, axis=1),
            "uniforms": self._uniforms[slots, cursor],
            "forced": forced,
            "steps": r.steps,
            "temperature": self.temperature[slots],
        }
        if r.filters:
            for name in ("top_k", "top_p", "min_p", "logit_bias"):
                feeds[name] = getattr(self, name)[slots]
        return feeds

    def advance(self, r: Round, tokens: Ids, state: NDArray[np.float32]) -> None:
        """Take over what a round made: `tokens` [time, rows], `state` [layers, rows, hidden]."""
        slots, generated = r.slots, r.steps - r.prompted
        self._rounds += 1
        self.served[slots] = self._rounds
        self.state[:, slots] = state
        self.token[slots] = tokens[r.steps - 1, np.arange(len(slots))]
        self.prompt_left[slots] -= r.prompted
        self._cursor[slots] += generated
        self.made[slots] += generated
        self.left[slots] -= generated

    def _draw(self, slot: int) -> None:
        """The next block of uniforms, from the position where the row stands."""
        self._uniforms[slot] = uniforms(int(self._seeds[slot]), int(self.made[slot]), UNIFORMS)
        self._cursor[slot] = 0
