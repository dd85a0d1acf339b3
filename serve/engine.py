"""The engine: all live streams of a model advance together, in rounds.

One thread owns the serving graphs. Again and again it plans a round (`_schedule`: which rows, how many steps), runs it
(`Decoder.run`) and hands the texts to the event loop in one go (`_update`). Streams join and leave between rounds, so
that a cancellation or a deadline takes effect within one. Streams whose reader is behind are parked: they are in no
round and cost nothing.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from serve.codec import Codec, Ids
from serve.errors import EngineError
from serve.rows import PLAIN, TOP_K, TOP_P, UNIFORMS, Round, Rows
from serve.runtime import Decoder
from serve.states import States
from serve.stream import Stream

MAX_STEPS = UNIFORMS // 2  # of a round, however fast the model is
FIRST_SECONDS = 0.002  # of a round for those who wait for their first character
BUFFER = 16_384  # characters that a stream may be ahead of its reader
IDLE_SECONDS = 60.0  # how long the engine sleeps at most

log = logging.getLogger("rill")


@dataclass(frozen=True)
class Delivery:
    """What has happened since the last one: a round's characters, and the streams that are gone.

    `streams` had a part in the round, `texts` are theirs in the same order; the streams in `gone` have left the engine,
    and their slots are free: those in `streams` because they are complete, or because of `error`.
    """

    streams: Sequence[Stream]
    texts: Callable[[], list[str]]  # decoded by the event loop, while the engine runs the next round
    gone: set[Stream]
    error: EngineError | None = None


class Engine:
    """Rounds over the streams of one model; `join`, `leave`, `read` and `stop` are called from the event loop.

    `deliver` is called on the event loop with what each round made. A round lasts about `round_seconds` at most, or one
    step.
    """

    def __init__(
        self,
        decoder: Decoder,
        codec: Codec,
        rows: Rows,
        states: States,
        deliver: Callable[[Delivery], None],
        round_seconds: float = 0.010,
    ) -> None:
        self._decoder, self._codec, self._rows, self._states, self._deliver = decoder, codec, rows, states, deliver
        self._round_seconds = round_seconds
        self._pace = StepTimes()
        self._inbox: deque[tuple[bool, Stream]] = deque()  # (joins, stream)
        self._outbox: list[Delivery] = []
        self._streams: dict[int, Stream] = {}
        self._newcomers_last = False
        self._wake = threading.Event()
        self._idle = self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._warm_up()
        self._thread = threading.Thread(target=self._main, name="rill-engine", daemon=True)
        self._thread.start()

    # ---- called from the event loop

    def join(self, stream: Stream) -> None:
        """Let `stream` take part in the rounds from now on, in its slot, which is free."""
        self._rows.read[stream.slot] = 0
        self._inbox.append((True, stream))
        self._wake.set()

    def leave(self, stream: Stream) -> None:
        """End `stream` before its time; a Delivery says when it is gone."""
        self._inbox.append((False, stream))
        self._wake.set()

    def read(self, stream: Stream, characters: int) -> None:
        """The reader of `stream`, which is not gone, has taken so many more characters."""
        self._rows.read[stream.slot] += characters
        if self._idle:
            self._wake.set()

    def parked(self) -> int:
        """Streams that wait for their reader or their pace."""
        return int((self._rows.room(time.monotonic(), BUFFER) <= 0).sum())

    def stop(self) -> None:
        """End the thread after the round in progress, and wait for it."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _warm_up(self) -> None:
        """Run all batch sizes once for the memory and once for the time, on rows that nobody uses yet."""
        for kind, batch in product((PLAIN, TOP_P, TOP_K), self._decoder.warm_up):
            slots = np.arange(min(batch, self._rows.slots))
            zeros = np.zeros(len(slots), np.int64)
            r = Round(slots, zeros + 4, zeros, kind, self._decoder.padding(len(slots)))
            for _ in range(2):
                started = time.perf_counter()
                self._decoder.run(r.variant, self._rows.feeds(r), self._states.batch(self._rows.batch(r)))
            self._pace.learn(r, time.perf_counter() - started)

    # ---- the engine thread

    def _main(self) -> None:
        while True:
            self._wake.clear()
            if self._stopping:  # looked at after clearing: a stop that comes later wakes us again
                return
            planned, now = None, time.monotonic()
            try:
                self._admit(now)
                planned = self._schedule(now)
                if planned is None:
                    self._hand_over()
                    self._sleep()
                    continue
                feeds, batch = self._rows.feeds(planned), self._rows.batch(planned)
                # The event loop sends the last round's texts while the graph makes the next: both have the GIL when
                # they need it.
                self._hand_over()
                started = time.perf_counter()
                tokens, states = self._decoder.run(planned.variant, feeds, self._states.batch(batch))
                self._pace.learn(planned, time.perf_counter() - started)
                self._states.keep(batch, states)
                self._update(planned, tokens[:, : len(planned.slots)], now)
            except Exception as error:  # whatever it is: its streams cannot go on, the others can
                log.exception("an engine round failed")
                self._fail(planned, error)

    def _admit(self, now: float) -> None:
        """Let streams join and leave, in the order they asked."""
        while self._inbox:
            joins, stream = self._inbox.popleft()
            if joins:
                self._streams[stream.slot] = stream
                self._rows.enter(stream.slot, stream.order, now)
                self._states.begin(stream.slot)
            elif self._streams.get(stream.slot) is stream:  # else it was complete, and is gone
                self._release(stream.slot)
                self._outbox.append(Delivery((), list, {stream}))

    def _schedule(self, now: float) -> Round | None:
        """The next round, or None if no stream can go on.

        Whoever can have the first character within a short round goes first, in a round of their own; after that
        everybody has a turn, the longest unserved first where there are too many for one round. A round is of one kind
        (`serve.rows.kind_of`), so that no stream pays for what its neighbours asked: the longest unserved one's.
        """
        rows = self._rows
        room = rows.room(now, BUFFER)
        ready = room > 0
        slots, room = rows.in_use[ready], room[ready]
        if not slots.size:
            return None
        prompt = rows.table["prompt_left"][slots] if rows.starting else np.zeros(len(slots), np.int64)

        chosen = np.arange(len(slots))
        newcomers = self._newcomers(slots, prompt)
        self._newcomers_last = newcomers.size > 0 and not self._newcomers_last
        if self._newcomers_last:
            chosen = newcomers
        kind = PLAIN
        if rows.filtered:
            table = rows.table[slots[chosen]]
            kind = int(table["kind"][table["served"].argmin()])
            chosen = chosen[table["kind"] == kind]
        # Newcomers may be many at once, but not with filters, which take more memory for each row.
        if len(chosen) > self._decoder.cohort and not (self._newcomers_last and kind == PLAIN):
            by_need = np.argsort(rows.table["served"][slots[chosen]], kind="stable")
            chosen = np.sort(chosen[by_need[: self._decoder.cohort]])
        slots, room, prompt = slots[chosen], room[chosen], prompt[chosen]

        if self._newcomers_last:
            most = self._pace.steps(len(slots), FIRST_SECONDS, kind)
            most = min(most, int(prompt.max()) + 1)
        else:
            most = self._pace.steps(len(slots), self._round_seconds, kind)
        steps = np.minimum(prompt + room, most)
        return Round(slots, steps, np.minimum(prompt, steps), kind, self._decoder.padding(len(slots)))

    def _newcomers(self, slots: Ids, prompt: Ids) -> Ids:
        """Which of `slots` have no character yet and can have one within a short round."""
        if not self._rows.starting:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self._rows.table["made"][slots] == 0) & (prompt < self._pace.steps(1, FIRST_SECONDS)))

    def _update(self, r: Round, tokens: Ids, began: float) -> None:
        """Take over what the round made and let go of the streams that are complete."""
        streams = [self._streams[slot] for slot in r.slots.tolist()]
        if self._rows.starting:
            for stream in streams:
                stream.entered = stream.entered or began
        complete = self._rows.advance(r, tokens).tolist()
        gone = {self._streams[slot] for slot in complete}
        for slot in complete:
            self._release(slot)
        self._outbox.append(Delivery(streams, partial(self._codec.decode, tokens, r.prompted, r.steps), gone))

    def _fail(self, planned: Round | None, error: Exception) -> None:
        """End the streams of a round, or all if it was not even planned."""
        slots = list(self._streams) if planned is None else planned.slots.tolist()
        streams = [self._streams[slot] for slot in slots if slot in self._streams]
        for stream in streams:
            self._release(stream.slot)
        self._outbox.append(Delivery(streams, list, set(streams), EngineError(f"an engine round failed: {error}")))

    def _release(self, slot: int) -> None:
        del self._streams[slot]
        self._rows.leave(slot)

    def _hand_over(self) -> None:
        for delivery in self._outbox:
            self._loop.call_soon_threadsafe(self._deliver, delivery)
        self._outbox.clear()

    def _sleep(self) -> None:
        """Wait for the event loop, or for the next paced stream's turn."""
        self._idle = True
        # What the event loop did before it could see `_idle` is seen here.
        now = time.monotonic()
        if not (self._rows.room(now, BUFFER) > 0).any():
            self._wake.wait(min(self._rows.next_due(now, BUFFER), IDLE_SECONDS))
        self._idle = False


class StepTimes:
    """How long a step takes at each batch size (in powers of two), learned from the rounds.

    A round's time includes waiting for the GIL and for a core, which a shorter round would not shorten: what is wanted
    is the step itself. So a faster round is believed more than a slower one.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}

    def learn(self, r: Round, seconds: float) -> None:
        """A round took so long."""
        key, seen = (r.kind, len(r.slots).bit_length()), seconds / r.time
        known = self._seconds.get(key, seen)
        self._seconds[key] = known + (0.5 if seen < known else 0.02) * (seen - known)

    def steps(self, batch: int, seconds: float, kind: int = PLAIN) -> int:
        """How many steps of `batch` rows fit in so many seconds: at least 1, at most MAX_STEPS."""
        known = self._seconds.get((kind, batch.bit_length()), 1e-3)  # as good a guess as any
        return int(min(max(seconds / known, 1), MAX_STEPS))
