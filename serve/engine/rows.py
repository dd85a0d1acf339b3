"""The live streams of an engine as arrays, one row per slot, which a round reads and writes as a whole.

The recurrent states, which may live on another device, are in `rill.serve.engine.states`.

Between two calls of the graph the processor's caches hold the model, not these arrays: every NumPy call here costs ten
times as much as it does alone. So related fields share one structured array, and features that no stream uses are
skipped.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.bundle import (
    DECODE,
    DECODE_CONSTRAINED,
    DECODE_CONSTRAINED_LOGPROBS,
    DECODE_LOGPROBS,
    DECODE_TOP_K,
    DECODE_TOP_P,
)
from rill.sampling import Sampling, UniformSource, window_of
from rill.serve.engine.automata import Automata
from rill.serve.engine.text_codec import GivenText, Ids
from rill.serve.engine.types import StreamSpec

ENDLESS = np.iinfo(np.int64).max // 2  # characters: more than will ever be generated, and safe to add to
BUFFER = 16_384  # characters that a stream may be ahead of its reader
BUFFER_LOGPROBS = 512  # likewise with log-probabilities of alternatives, which take up to 164 bytes a character
BUFFER_BYTES = 2**20  # of the text that the buffer holds: a message may have all of it
UNIFORMS = 1024  # drawn at a time, per row

# What a row asks of the graph, as a number; a round has rows of one kind. From TOP_P on, its graph has filters, from
# LOGPROBS on, also a top-k, and from TOP_K on, the kind also says how many masses are sorted.
PLAIN, CONSTRAINED, TOP_P, LOGPROBS, TOTALS, CONSTRAINED_LOGPROBS, TOP_K = range(7)
# The graphs for these.
VARIANTS = (
    DECODE.key,
    DECODE_CONSTRAINED.key,
    DECODE_TOP_P.key,
    DECODE_LOGPROBS.key,
    DECODE_LOGPROBS.key,
    DECODE_CONSTRAINED_LOGPROBS.key,
    DECODE_TOP_K.key,
)

ROW = np.dtype(
    [
        ("token", np.int64),  # the last character: the model reads it next
        ("prompt_left", np.int64),  # prompt characters that are still to be read
        ("start", np.int64),  # position of its first character: how many were generated before it was resumed
        ("generated", np.int64),  # characters so far, those before `start` included
        ("limit", np.int64),  # of `generated`
        ("next_stop", np.int64),  # of `generated`: where a round must end, for a snapshot or at the limit
        ("uniforms_start", np.int64),  # position of the first of the row's uniforms
        ("last_round", np.int64),  # number of the last round that the row was in
        ("buffer", np.int64),  # characters that it may be ahead of its reader
        ("pace", np.float64),  # characters a second; infinity: as fast as they are read
        ("since", np.float64),  # when the pace began, time.monotonic()
        ("top_k", np.int64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("kind", np.int64),  # `kind_of`; TOTALS where nobody reads along
        ("automaton", np.int64),  # the row of the tables (`rill.serve.engine.automata`) that its automaton is in
        ("total", np.float64),  # of the log-probabilities so far, where the kind is TOTALS
    ]
)


def kind_of(sampling: Sampling, logprobs: bool = False, constrained: bool = False) -> int:
    """What a row asks of the graph.

    Rows of one kind do not slow each other down: sorting for a top-k takes as long as the largest k in the batch. But
    constrained rows with filters, which are rare, share a graph.
    """
    if constrained:
        return CONSTRAINED_LOGPROBS if logprobs or sampling.filtered else CONSTRAINED
    if logprobs:
        return LOGPROBS
    if sampling.top_k:
        return TOP_K + max(sampling.top_k - 1, 63).bit_length() - 6  # up to 64, 128, 256, ...
    return TOP_P if sampling.filtered else PLAIN


@dataclass(frozen=True)
class Round:
    """One call of the serving graph: its rows, and the steps of each."""

    slots: Ids  # [rows]
    steps: Ids  # [rows], prompt characters included
    prompted: Ids  # [rows], those of the steps that read a prompt
    kind: int  # of all its rows
    padding: int = 0  # more rows, which take no step, for a batch size that the graphs are run with
    newcomers: bool = False  # the rows have no character yet: their round is between two rounds of a turn

    @property
    def is_constrained(self) -> bool:
        """Whether all its rows are: they have read their prompts."""
        return self.kind in (CONSTRAINED, CONSTRAINED_LOGPROBS)

    @property
    def variant(self) -> str:
        """The key of the serving graph for this kind."""
        return VARIANTS[min(self.kind, TOP_K)]

    @property
    def time(self) -> int:
        """Steps of the call."""
        return int(self.steps.max())


class Rows:
    """The streams by slot. All belongs to the engine's thread, except `read`, which only the event loop writes.

    `starting` are the slots of streams without a character, but those that have nothing to read before it and that
    nobody waits for (TOTALS, and whole texts); `paced` counts the streams that have a pace. `reading` are the slots of
    constrained streams with a prompt to read, which plain rounds do. No symbol has more than `longest` code points.
    `automata` are needed for constrained streams.
    """

    def __init__(self, slots: int, vocabulary: int, longest: int = 1, automata: Automata | None = None) -> None:
        self.slots = slots
        self._buffer = min(BUFFER, BUFFER_BYTES // (4 * longest))
        # np.zeros takes memory only when a slot is first used. The last slot is for padding.
        self.table = np.zeros(slots + 1, ROW)
        self.read = np.zeros(slots, np.int64)  # position up to which the stream's reader has taken the text
        self.logit_bias = np.zeros((slots + 1, vocabulary), np.float32)
        self.uniforms = np.zeros((slots + 1, UNIFORMS), np.float32)
        self._source = UniformSource()
        self.starting: set[int] = set()
        self.reading: set[int] = set()
        self._automata = automata
        self._bases: dict[int, int] = {}  # of the automata of constrained streams in the tables, by slot
        self.paced = 0
        self._specs: dict[int, StreamSpec] = {}
        self._given: dict[int, GivenText] = {}  # the characters of streams that do not choose them
        self.in_use = np.zeros(0, np.int64)  # slots, as of the last `settle`
        self._is_settled = True
        self._rounds = 0

    def enter(self, slot: int, spec: StreamSpec, now: float) -> None:
        """Begin a stream in a free slot, whose `read` the event loop has set."""
        self._specs[slot] = spec
        self.paced += spec.chars_per_second > 0
        self._is_settled = False
        sampling, row = spec.sampling, self.table[slot]
        (row["token"],) = spec.prompt[:1]
        row["prompt_left"] = len(spec.prompt) - 1
        row["start"] = row["generated"] = spec.position
        row["last_round"] = self._rounds
        row["limit"] = spec.position + spec.max_chars if spec.max_chars else ENDLESS
        # Text that is held back for a stop does not count as unread.
        buffer = min(BUFFER_LOGPROBS, self._buffer) if spec.logprobs else self._buffer
        row["buffer"] = buffer + max(map(len, spec.stops), default=0)
        row["pace"] = spec.chars_per_second or np.inf
        row["since"] = now - spec.position / row["pace"]
        row["temperature"], row["top_k"] = sampling.temperature, sampling.top_k
        row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
        row["kind"] = kind_of(sampling, spec.logprobs is not None, spec.is_constrained)
        if spec.is_constrained:
            assert self._automata
            assert spec.automaton
            self._bases[slot] = base = self._automata.base(spec.automaton)
            row["automaton"] = base + spec.automaton_state
            if row["prompt_left"]:
                self.reading.add(slot)
        if spec.only_total:
            row["kind"], row["buffer"], row["total"] = TOTALS, ENDLESS, 0.0
        if spec.is_whole:
            row["buffer"] = ENDLESS
        if row["kind"] >= TOP_P:
            self.logit_bias[slot] = 0
            for symbol, bias in sampling.logit_bias.items():
                self.logit_bias[slot, symbol] = bias
        if spec.given:
            self._given[slot] = spec.given
        self.plan_snapshot(slot)
        self._draw(slot)
        if not (spec.only_total or spec.is_whole) or row["prompt_left"]:
            self.starting.add(slot)

    def plan_snapshot(self, slot: int) -> None:
        """Let a round end where the next snapshot is due."""
        row = self.table[slot]
        row["next_stop"] = min(int(row["limit"]), int(row["generated"]) + (self._specs[slot].resume_every or ENDLESS))

    def is_complete(self, slot: int) -> bool:
        """Whether all characters of the stream are generated."""
        return bool(self.table["generated"][slot] == self.table["limit"][slot])

    def leave(self, slot: int) -> None:
        """End the stream in `slot`."""
        self.starting.discard(slot)
        self.reading.discard(slot)
        self._bases.pop(slot, None)
        self._given.pop(slot, None)
        self.paced -= self._specs.pop(slot).chars_per_second > 0
        self._is_settled = False

    def settle(self) -> None:
        """Bring `in_use` up to date, once for all streams that have joined and left."""
        if not self._is_settled:
            self.in_use = np.fromiter(self._specs, np.int64, len(self._specs))
            self._is_settled = True

    def room(self, now: float) -> Ids:
        """How many characters each slot in use may generate now, int64 [in_use]; 0 or less if it is parked.

        Its length, next snapshot, reader and pace set the bounds.
        """
        slots = self.in_use
        return self.room_of(slots, self.table[slots], now)

    def room_of(self, slots: Ids, table: NDArray[Any], now: float) -> Ids:
        """The room of `slots`, whose rows are `table`."""
        room: Ids = np.minimum(table["next_stop"], self.read[slots] + table["buffer"]) - table["generated"]
        if self.paced:
            with np.errstate(invalid="ignore"):  # 0 seconds at an infinite pace: no bound
                due = np.nan_to_num((now - table["since"]) * table["pace"], nan=np.inf)
            room = np.minimum(room, np.minimum(due, ENDLESS).astype(np.int64) + 1 - table["generated"])
        return room

    def was_blocked_by_reader(self, slot: int, characters: int) -> bool:
        """Whether a stream was parked because of its reader, until that took the last so many characters."""
        row = self.table[slot]
        return bool(row["generated"] - (self.read[slot] - characters) >= row["buffer"])

    def next_due(self, now: float) -> float:
        """Seconds until the pace of a stream allows its next character; infinity if no stream waits for its pace."""
        table = self.table[self.in_use]
        table = table[(table["generated"] - self.read[self.in_use] < table["buffer"]) & (table["pace"] < np.inf)]
        return float(max((table["since"] + table["generated"] / table["pace"]).min(initial=np.inf) - now, 0.0))

    def feeds(self, r: Round) -> dict[str, NDArray[Any]]:
        """The inputs of the serving graph for a round, without the states; [rows + padding] each."""
        slots, time = self.batch(r), r.time
        steps, prompted = _padded(r.steps, r.padding), _padded(r.prompted, r.padding)
        table = self.table[slots]
        cursor = table["generated"] - table["uniforms_start"]
        if cursor.max() + time > UNIFORMS:
            for slot in r.slots[cursor[: len(r.slots)] + time > UNIFORMS].tolist():
                self._draw(slot)
            cursor = table["generated"] - self.table["uniforms_start"][slots]
        index = np.arange(time)[:, None] + cursor
        if self.starting:
            # A row's uniforms begin where its prompt ends: the graph does not read those before.
            index = np.maximum(index - prompted, 0)
        feeds: dict[str, NDArray[Any]] = {
            "token": np.ascontiguousarray(table["token"]),
            "uniforms": self.uniforms[slots, index],
            "steps": steps,
            "temperature": np.ascontiguousarray(table["temperature"]),
        }
        if r.is_constrained:
            feeds["automaton"] = np.ascontiguousarray(table["automaton"])
        else:
            feeds["forced"] = self._forced(r, slots, table)
        if r.kind >= TOP_P:
            feeds |= {name: np.ascontiguousarray(table[name]) for name in ("top_p", "min_p")}
            feeds["logit_bias"] = self.logit_bias[slots]
        if r.kind >= LOGPROBS:
            feeds["top_k"] = np.ascontiguousarray(table["top_k"])
            feeds["window"] = window_of(feeds["top_k"], self.logit_bias.shape[1])
        return feeds

    def _forced(self, r: Round, slots: Ids, table: NDArray[Any]) -> Ids:
        """The characters [time, rows + padding] that a round does not choose; -1 elsewhere."""
        forced = np.full((r.time, len(slots)), -1, np.int64)
        if self.starting:
            for column in np.flatnonzero(r.prompted).tolist():
                prompt, reads = self._specs[int(slots[column])].prompt, int(r.prompted[column])
                at = len(prompt) - int(table["prompt_left"][column])
                forced[:reads, column] = prompt[at : at + reads]
        if self._given and r.kind in (LOGPROBS, TOTALS):
            for column, slot in enumerate(r.slots.tolist()):
                if text := self._given.get(slot):
                    at = int(table["generated"][column] - table["start"][column])
                    begin, end = int(r.prompted[column]), int(r.steps[column])
                    forced[begin:end, column] = text.ids(at, at + end - begin)
        return forced

    def batch(self, r: Round) -> Ids:
        """The slots of a round, padding included."""
        return _padded(r.slots, r.padding, self.slots)

    def advance(self, r: Round, tokens: Ids) -> Ids:
        """Take over the `tokens` [time, rows] of a round; return the columns that reached their next stop."""
        slots = r.slots
        self._rounds += 1
        table = self.table
        generated = table["generated"][slots] + (r.steps - r.prompted)
        table["generated"][slots] = generated
        table["token"][slots] = tokens[r.steps - 1, np.arange(len(slots))]
        table["last_round"][slots] = self._rounds
        if self.starting:
            table["prompt_left"][slots] -= r.prompted
            self.starting.difference_update(slots[r.steps > r.prompted].tolist())
            if self.reading:
                self.reading.difference_update(slots[table["prompt_left"][slots] == 0].tolist())
        return np.flatnonzero(generated == table["next_stop"][slots])

    def follow(self, r: Round, automata: Ids) -> None:
        """Take over the rows of the tables, `automata` [time, rows], to which a constrained round has led."""
        columns = np.flatnonzero(r.steps)
        self.table["automaton"][r.slots[columns]] = automata[r.steps[columns] - 1, columns]

    def end_automata(self, slots: Ids) -> None:
        """Lead the automata of constrained streams that have chosen a terminator to their last state."""
        for slot in slots.tolist():
            automaton = self._specs[slot].automaton
            assert automaton
            self.table["automaton"][slot] = self._bases[slot] + automaton.ended

    def needs_last_snapshot(self, slot: int) -> bool:
        """Whether the end of the stream in `slot` is of use: as a token, or to tell whether its text matches."""
        spec = self._specs[slot]
        return not spec.is_whole or spec.automaton is not None

    def is_constrained(self, slot: int) -> bool:
        """Whether the automaton of the stream in `slot` moves."""
        return slot in self._bases

    def automaton_state(self, slot: int, row: int | None = None) -> int:
        """The state of a stream's automaton, now or at a `row` of the tables; as at its beginning if it never moves."""
        if slot not in self._bases:
            return self._specs[slot].automaton_state
        return int(self.table["automaton"][slot] if row is None else row) - self._bases[slot]

    def add_totals(self, r: Round, logprobs: NDArray[np.float32]) -> None:
        """Add the log-probabilities [time, rows] of a round to the totals, one after another: the bits of a total do
        not depend on how its steps were divided into rounds.
        """
        step = np.arange(len(logprobs))[:, None]
        terms = np.zeros((len(logprobs) + 1, len(r.slots)))
        terms[0] = self.table["total"][r.slots]
        np.copyto(terms[1:], logprobs, where=(step >= r.prompted) & (step < r.steps))
        self.table["total"][r.slots] = np.add.accumulate(terms)[-1]

    def _draw(self, slot: int) -> None:
        """Draw the next block of uniforms, from the row's position on."""
        start = int(self.table["generated"][slot])
        if slot not in self._given:  # there, nothing is chosen
            count = min(UNIFORMS, int(self.table["limit"][slot]) - start)
            self.uniforms[slot, :count] = self._source.draw(self._specs[slot].seed, start, count)
        self.table["uniforms_start"][slot] = start


def _padded(values: Ids, padding: int, value: int = 0) -> Ids:
    return np.concatenate([values, np.full(padding, value)]) if padding else values
