"""Which streams are in the next round, and how many steps it has."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rill.serve.engine.decoder import Decoder
from rill.serve.engine.rows import CONSTRAINED, CONSTRAINED_LOGPROBS, PLAIN, TOTALS, UNIFORMS, Round, Rows
from rill.serve.engine.text_codec import Ids

MAX_STEPS = UNIFORMS // 2  # of a round, however fast the model is
SHORT_PROMPT_SECONDS = 0.020  # to read a prompt alone; streams with longer prompts take turns like the others
NEWCOMER_SECONDS = 0.030  # the most that newcomers may use at once, of time that they have not used before
TURN_SECONDS = 0.028  # of rounds, until the last one of a turn begins
TURN_STEPS = 16  # of a turn, at least, where a step takes long


@dataclass(frozen=True)
class Ready:
    """The streams that can advance, [streams] each."""

    slots: Ids
    room: Ids  # characters that may be generated
    prompt: Ids  # characters to be read before; constrained streams do that in plain rounds, and have no room there
    last_round: Ids  # the number of the last round that the stream was in
    kind: Ids  # `rill.serve.engine.rows.kind_of`
    is_new: NDArray[np.bool_]  # has no character yet, and its reader waits for one


class Scheduler:
    """Plans rounds of about `round_seconds` at most, or one step. Used by the engine's thread only.

    Where there are too many streams for one round, they take turns of several rounds, so that messages are worth
    sending. Streams that wait for their first character need not wait that long: between any two rounds they can have
    one of their own, and then join the turn if it has capacity.
    """

    def __init__(self, rows: Rows, decoder: Decoder, round_seconds: float) -> None:
        self._rows, self._max_rows, self._padding = rows, decoder.max_rows, decoder.padding
        self._round_seconds = round_seconds
        self.times = StepTimes()
        self.turn_seconds = TURN_SECONDS  # of the last turn
        self._turn_left = 0.0  # seconds of rounds
        self._members = np.zeros(rows.slots, bool)  # of the turn, by slot
        self._newcomer_budget = NEWCOMER_SECONDS

    def plan(self, now: float, is_crowded: bool = False) -> Round | None:
        """The next round, or None if no stream can advance.

        With `is_crowded`, because calls wait for a slot, newcomers have no rounds of their own. Such rounds read
        prompts for a few rows at a time, at three times the cost of a character: half of the engine's time was spent on
        them, and calls waited longer for a slot than they saved after it.
        """
        ready = self._ready(now)
        newcomers = self._newcomers(ready)
        if newcomers.size and self._newcomer_budget > 0 and not is_crowded:
            return self._newcomer_round(ready, newcomers)
        if self._turn_left > 0:
            chosen = np.flatnonzero(self._members[ready.slots])
            if 2 * len(chosen) > self._members.sum():  # else too many have ended, or wait for their reader
                return self._turn_round(ready, chosen)
        r = self._turn_round(ready, np.arange(len(ready.slots)))
        if r and r.kind != TOTALS and not self._only_reads(r):
            self._turn_left = self.turn_seconds = max(TURN_SECONDS, TURN_STEPS * self.times.step(len(r.slots), r.kind))
        return r

    def record(self, r: Round, seconds: float) -> None:
        """Account for the time of a round: newcomers get as much as the others, if they want it."""
        self.times.learn(r, seconds)
        if r.newcomers:
            self._newcomer_budget -= seconds
        else:
            self._newcomer_budget = min(self._newcomer_budget + seconds, NEWCOMER_SECONDS)
            self._turn_left -= seconds

    def _ready(self, now: float) -> Ready:
        slots = self._rows.in_use
        table = self._rows.table[slots]
        room = self._rows.room_of(slots, table, now)
        if (room <= 0).any():
            slots, table, room = slots[room > 0], table[room > 0], room[room > 0]
        kind, prompt = table["kind"], table["prompt_left"]
        is_new = (table["generated"] == table["start"]) & (kind != TOTALS)
        if self._rows.reading:
            reads = (prompt > 0) & ((kind == CONSTRAINED) | (kind == CONSTRAINED_LOGPROBS))
            kind, room = np.where(reads, PLAIN, kind), np.where(reads, 0, room)
        return Ready(slots, room, prompt, table["last_round"], kind, is_new)

    def _only_reads(self, r: Round) -> bool:
        """Whether a round is for constrained streams' prompts alone: they go on in rounds of another kind, so it is no
        beginning of a turn.
        """
        return bool(self._rows.reading) and bool((r.steps == r.prompted).all())

    def _newcomers(self, ready: Ready) -> Ids:
        """The streams that have no character yet and can have one within a short round."""
        if not self._rows.starting:
            return np.zeros(0, np.int64)
        return np.flatnonzero(ready.is_new & (ready.prompt < self.times.steps(1, SHORT_PROMPT_SECONDS)))

    def _newcomer_round(self, ready: Ready, chosen: Ids) -> Round:
        """A round of those rows that have their first character about as soon as the one that has waited longest."""
        chosen, leader = _of_leaders_kind(ready, chosen)
        kind = int(ready.kind[leader])
        most = self.times.steps(len(chosen), self._round_seconds, kind)
        steps = np.minimum(ready.prompt + np.minimum(ready.room, 1), most)
        chosen = _companions(chosen, steps, leader)
        # A plain round may have many rows; filters take more memory for each. Where a prompt takes more than this
        # round, let some rows finish theirs rather than all begin.
        if kind != PLAIN or (ready.prompt[chosen] >= most).any():
            chosen = self._with_least(ready.prompt, chosen)
        r = self._round(ready, chosen, int(steps[chosen].max()), newcomers=True)
        if self._members.sum() + len(r.slots) <= self._max_rows:
            self._members[r.slots] = True
        return r

    def _turn_round(self, ready: Ready, chosen: Ids) -> Round | None:
        """A round of those rows that can go about as far as the one that has waited longest; None if there are none."""
        if not chosen.size:
            return None
        chosen, leader = _of_leaders_kind(ready, chosen)
        if ready.kind[leader] == TOTALS:
            return self._totals_round(ready, chosen)
        # A few rows do not use the machine fully anyway; a single one pays for the preparation of each round alone.
        few = 1 < len(chosen) <= self._max_rows // 2
        seconds = self._round_seconds / 2 if few else self._round_seconds
        most = self.times.steps(min(len(chosen), self._max_rows), seconds, int(ready.kind[leader]))
        chosen = _companions(chosen, np.minimum(ready.prompt + ready.room, most), leader)
        r = self._round(ready, self._with_least(ready.last_round, chosen), most)
        self._members[:] = False
        self._members[r.slots] = True
        return r

    def _totals_round(self, ready: Ready, chosen: Ids) -> Round:
        """A round of texts that nobody reads along: of many rows, with little waste, and not part of a turn."""
        chosen = self._with_least(ready.last_round, chosen)
        most = self.times.steps(len(chosen), self._round_seconds, TOTALS)
        return self._round(ready, chosen, _least_waste(ready.prompt[chosen] + ready.room[chosen], most))

    def _with_least(self, values: Ids, chosen: Ids) -> Ids:
        """As many of the rows `chosen` as fit in a round: those with the least of `values`."""
        if len(chosen) <= self._max_rows:
            return chosen
        return np.sort(chosen[np.argsort(values[chosen], kind="stable")[: self._max_rows]])

    def _round(self, ready: Ready, chosen: Ids, most: int, newcomers: bool = False) -> Round:
        slots, prompt = ready.slots[chosen], ready.prompt[chosen]
        steps = np.minimum(prompt + ready.room[chosen], most)
        kind, padding = int(ready.kind[chosen[0]]), self._padding(len(slots))
        return Round(slots, steps, np.minimum(prompt, steps), kind, padding, newcomers)


def _of_leaders_kind(ready: Ready, chosen: Ids) -> tuple[Ids, int]:
    """The leader of the rows `chosen`, which has waited longest, and those of them that are of its kind."""
    leader = int(chosen[ready.last_round[chosen].argmin()])
    return chosen[ready.kind[chosen] == ready.kind[leader]], leader


def _companions(chosen: Ids, steps: Ids, leader: int) -> Ids:
    """The rows `chosen` that share a round with the leader: as many as can without half of the round being wasted.

    Rows that take few steps, because of their pace or their reader, cost the others as much as rows that take many.
    """
    while True:
        own = steps[chosen]
        most = own.max()
        if 2 * own.sum() >= len(own) * most:
            return chosen
        chosen = chosen[(2 * own > most) == (2 * steps[leader] > most)]


def _least_waste(left: Ids, most: int) -> int:
    """How many steps, up to `most`, make the best use of a round of rows that have so many `left`.

    A row that ends costs as much as before until the round does, and a round costs about one step more than its own.
    """
    steps = np.unique(np.minimum(left, most))
    return int(steps[np.argmax(np.minimum.outer(steps, left).sum(axis=1) / (steps + 1))])


class StepTimes:
    """How long a step takes at each batch size (in powers of two), learned from the rounds.

    The time of a round includes waiting for the GIL and for a core, which a shorter round would not shorten; the time
    of the step itself is wanted. So a faster round has more weight than a slower one.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}

    def learn(self, r: Round, seconds: float) -> None:
        """Take the time of a round into account."""
        key, seen = (r.kind, len(r.slots).bit_length()), seconds / r.time
        known = self._seconds.get(key, seen)
        self._seconds[key] = known + (0.5 if seen < known else 0.02) * (seen - known)

    def step(self, batch: int, kind: int = PLAIN) -> float:
        """Seconds that a step of `batch` rows takes."""
        return self._seconds.get((kind, batch.bit_length()), 1e-3)  # a guess like any other

    def steps(self, batch: int, seconds: float, kind: int = PLAIN) -> int:
        """How many steps of `batch` rows take so many seconds: at least 1, at most MAX_STEPS."""
        return min(max(round(seconds / self.step(batch, kind)), 1), MAX_STEPS)
