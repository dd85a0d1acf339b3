"""The live streams of an engine as arrays, one row a slot: a round reads and writes them as a whole.

The recurrent states, which may live on another device, are `rill.serve.engine.states`'.

Between two calls of the graph the processor's caches hold the model, not this: every NumPy call here costs ten times
what it does alone. So what belongs together is one structured array, and what a stream does not use is not looked at.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.sampling import Sampling, UniformSource, window_of
from rill.serve.engine.text_codec import GivenText, Ids
from rill.serve.engine.types import StreamSpec

ENDLESS = np.iinfo(np.int64).max // 2  # characters: more than will ever be made, and safe to add to
BUFFER = 16_384  # characters that a stream may be ahead of its reader
BUFFER_LOGPROBS = 512  # ... with log-probabilities of alternatives, which take up to 164 bytes a character
UNIFORMS = 1024  # drawn at a time, per row

# What a row asks of the graph, as a number; a round has rows of one kind. From TOP_K on, how many masses it sorts.
PLAIN, TOP_P, LOGPROBS, TOP_K = range(4)
VARIANTS = ("decode", "decode_top_p", "decode_logprobs", "decode_top_k")  # the graphs' keys for these

ROW = np.dtype(
    [
        ("token", np.int64),  # the last character: the next one to be read
        ("prompt_left", np.int64),  # prompt characters that are still to be taken
        ("start", np.int64),  # position of its first character: how many were generated before it was resumed
        ("generated", np.int64),  # characters generated so far, those included
        ("limit", np.int64),  # ... and at most
        ("next_stop", np.int64),  # ... and before something is to be done: at most the limit
        ("uniforms_start", np.int64),  # position of the first of the row's uniforms
        ("last_round", np.int64),  # number of the last round that the row was in
        ("buffer", np.int64),  # characters that it may be ahead of its reader
        ("pace", np.float64),  # characters a second; infinity: as fast as they are read
        ("since", np.float64),  # when the pace began, time.monotonic()
        ("top_k", np.int64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("kind", np.int64),  # what the row asks of the graph: `kind_of`
    ]
)


def kind_of(sampling: Sampling, logprobs: bool = False) -> int:
    """Rows of one kind cost one another nothing: the sorting of a top-k takes as long as the largest k in the batch."""
    if logprobs:
        return LOGPROBS
    if sampling.top_k:
        return TOP_K + max(sampling.top_k - 1, 63).bit_length() - 6  # up to 64, 128, 256, ...
    return TOP_P if sampling.filtered else PLAIN


@dataclass(frozen=True)
class Round:
    """One call of the serving graph: which rows, and how far each goes."""

    slots: Ids  # [rows]
    steps: Ids  # [rows], prompt characters included
    prompted: Ids  # [rows]: how many of the steps read a prompt
    kind: int  # of all its rows
    padding: int = 0  # rows beside them that take no step, for a batch size that the device knows
    newcomers: bool = False  # between two rounds of others, for those who have no character yet

    @property
    def variant(self) -> str:
        """The key of the serving graph that can do this."""
        return VARIANTS[min(self.kind, TOP_K)]

    @property
    def time(self) -> int:
        """Steps of the call."""
        return int(self.steps.max())


class Rows:
    """Parameters by slot. All is the engine thread's own, except `read`, which only the event loop writes.

    `starting` are the slots whose stream has no character yet; `paced` and `special` count streams that have a pace,
    and that need more than the plain graph.
    """

    def __init__(self, slots: int, vocabulary: int) -> None:
        self.slots = slots
        # np.zeros and np.empty take memory only when a slot is first used. The last slot is nobody's: padding.
        self.table = np.zeros(slots + 1, ROW)
        self.read = np.zeros(slots, np.int64)  # characters that the stream's reader has taken
        self.logit_bias = np.zeros((slots + 1, vocabulary), np.float32)
        self.uniforms = np.zeros((slots + 1, UNIFORMS), np.float32)
        self._source = UniformSource()
        self.starting: set[int] = set()
        self.paced = self.special = 0
        self._specs: dict[int, StreamSpec] = {}
        self._given: dict[int, GivenText] = {}  # the characters of streams that do not choose theirs
        self.in_use = np.zeros(0, np.int64)  # their slots, as of the last `settle`
        self._is_settled = True
        self._rounds = 0

    def enter(self, slot: int, spec: StreamSpec, now: float) -> None:
        """Begin a stream in a free slot. (`read` is set by the event loop, before.)"""
        self._specs[slot] = spec
        self._count(spec, +1)
        sampling, row = spec.sampling, self.table[slot]
        (row["token"],) = spec.prompt[:1]
        row["prompt_left"] = len(spec.prompt) - 1
        row["start"] = row["generated"] = spec.position
        row["last_round"] = self._rounds
        row["limit"] = spec.position + spec.max_chars if spec.max_chars else ENDLESS
        # What may become a stop has not reached the reader.
        row["buffer"] = (BUFFER_LOGPROBS if spec.logprobs else BUFFER) + max(map(len, spec.stops), default=0)
        row["pace"] = spec.chars_per_second or np.inf
        row["since"] = now - spec.position / row["pace"]
        row["temperature"], row["top_k"] = sampling.temperature, sampling.top_k
        row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
        row["kind"] = kind_of(sampling, spec.logprobs is not None)
        if row["kind"] != PLAIN:
            self.logit_bias[slot] = 0
            for symbol, bias in sampling.logit_bias.items():
                self.logit_bias[slot, symbol] = bias
        if spec.given:
            self._given[slot] = spec.given
        self.set_next_stop(slot)
        self._draw(slot)
        self.starting.add(slot)

    def set_next_stop(self, slot: int) -> None:
        """The row stops again for the next snapshot."""
        row = self.table[slot]
        row["next_stop"] = min(int(row["limit"]), int(row["generated"]) + (self._specs[slot].resume_every or ENDLESS))

    def is_complete(self, slot: int) -> bool:
        """Whether all that was asked for has been made."""
        return bool(self.table["generated"][slot] == self.table["limit"][slot])

    def leave(self, slot: int) -> None:
        """End the stream in `slot`."""
        self.starting.discard(slot)
        self._given.pop(slot, None)
        self._count(self._specs.pop(slot), -1)

    def _count(self, spec: StreamSpec, change: int) -> None:
        self._is_settled = False
        self.paced += change * (spec.chars_per_second > 0)
        self.special += change * (kind_of(spec.sampling, spec.logprobs is not None) != PLAIN)

    def settle(self) -> None:
        """Bring `in_use` up to date, once for all who have come and gone."""
        if not self._is_settled:
            self.in_use = np.fromiter(self._specs, np.int64, len(self._specs))
            self._is_settled = True

    def room(self, now: float) -> Ids:
        """How many characters each slot in use may generate now, int64 [in_use]; 0 or less for a parked one.

        Bounded by the stream's length and next snapshot, by how far its reader is behind, and by its pace.
        """
        slots = self.in_use
        return self.room_of(slots, self.table[slots], now)

    def room_of(self, slots: Ids, table: NDArray[Any], now: float) -> Ids:
        """`room` of some slots, whose rows are `table`."""
        room: Ids = np.minimum(table["next_stop"], self.read[slots] + table["buffer"]) - table["generated"]
        if self.paced:
            with np.errstate(invalid="ignore"):  # no time at no pace: as much as there is room for
                due = np.nan_to_num((now - table["since"]) * table["pace"], nan=np.inf)
            room = np.minimum(room, np.minimum(due, ENDLESS).astype(np.int64) + 1 - table["generated"])
        return room

    def was_blocked_by_reader(self, slot: int, characters: int) -> bool:
        """Whether the reader of a stream kept it from going on before it took the last so many characters."""
        row = self.table[slot]
        return bool(row["generated"] - (self.read[slot] - characters) >= row["buffer"])

    def next_due(self, now: float) -> float:
        """Seconds until the pace of some stream allows its next character; infinity if no stream waits for that."""
        table = self.table[self.in_use]
        table = table[(table["generated"] - self.read[self.in_use] < table["buffer"]) & (table["pace"] < np.inf)]
        return float(max((table["since"] + table["generated"] / table["pace"]).min(initial=np.inf) - now, 0.0))

    def feeds(self, r: Round) -> dict[str, NDArray[Any]]:
        """The inputs of the serving graph for a round, the states apart; [rows + padding] each."""
        slots, time = self.batch(r), r.time
        steps, prompted = _padded(r.steps, r.padding), _padded(r.prompted, r.padding)
        table = self.table[slots]
        cursor = table["generated"] - table["uniforms_start"]
        if cursor.max() + time > UNIFORMS:
            for slot in r.slots[cursor[: len(r.slots)] + time > UNIFORMS].tolist():
                self._draw(slot)
            cursor = table["generated"] - self.table["uniforms_start"][slots]
        forced = np.full((time, len(slots)), -1, np.int64)
        index = np.arange(time)[:, None] + cursor
        if self.starting:
            # A row's uniforms begin where its prompt ends: what stands before is not looked at.
            index = np.maximum(index - prompted, 0)
            for column in np.flatnonzero(prompted).tolist():
                prompt, reads = self._specs[int(slots[column])].prompt, int(prompted[column])
                at = len(prompt) - int(table["prompt_left"][column])
                forced[:reads, column] = prompt[at : at + reads]
        if self._given and r.kind == LOGPROBS:
            for column, slot in enumerate(r.slots.tolist()):
                if text := self._given.get(slot):
                    at = int(table["generated"][column] - table["start"][column])
                    begin, end = int(prompted[column]), int(steps[column])
                    forced[begin:end, column] = text.ids(at, at + end - begin)
        feeds: dict[str, NDArray[Any]] = {
            "token": np.ascontiguousarray(table["token"]),
            "uniforms": self.uniforms[slots, index],
            "forced": forced,
            "steps": steps,
            "temperature": np.ascontiguousarray(table["temperature"]),
        }
        if r.kind != PLAIN:
            feeds |= {name: np.ascontiguousarray(table[name]) for name in ("top_p", "min_p")}
            feeds["logit_bias"] = self.logit_bias[slots]
        if r.kind >= LOGPROBS:
            feeds["top_k"] = np.ascontiguousarray(table["top_k"])
            feeds["window"] = window_of(feeds["top_k"], self.logit_bias.shape[1])
        return feeds

    def batch(self, r: Round) -> Ids:
        """The slots of a round, padding included."""
        return _padded(r.slots, r.padding, self.slots)

    def advance(self, r: Round, tokens: Ids) -> Ids:
        """Take over a round's `tokens` [time, rows]; the columns that stop here: complete, or due for a snapshot."""
        slots = r.slots
        self._rounds += 1
        table = self.table
        made = table["generated"][slots] + (r.steps - r.prompted)
        table["generated"][slots] = made
        table["token"][slots] = tokens[r.steps - 1, np.arange(len(slots))]
        table["last_round"][slots] = self._rounds
        if self.starting:
            table["prompt_left"][slots] -= r.prompted
            self.starting.difference_update(slots[r.steps > r.prompted].tolist())
        return np.flatnonzero(made == table["next_stop"][slots])

    def _draw(self, slot: int) -> None:
        """The next block of uniforms, from the position where the row stands."""
        made = int(self.table["generated"][slot])
        count = min(UNIFORMS, int(self.table["limit"][slot]) - made)
        self.uniforms[slot, :count] = self._source.draw(self._specs[slot].seed, made, count)
        self.table["uniforms_start"][slot] = made


def _padded(values: Ids, padding: int, value: int = 0) -> Ids:
    return np.concatenate([values, np.full(padding, value)]) if padding else values
