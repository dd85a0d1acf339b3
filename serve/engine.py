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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from serve.codec import Codec, Ids
from serve.errors import EngineError
from serve.rows import UNIFORMS, Round, Rows
from serve.runtime import Decoder
from serve.stream import End, Stream

MAX_STEPS = UNIFORMS // 2  # of a round, however fast the model is
FIRST_SECONDS = 0.002  # of a round for those who wait for their first character
COHORT = 64  # rows of a round: beyond this a character costs no less, and many streams take turns instead
WARM_UP = (1, 8, COHORT)  # rows
BUFFER = 16_384  # characters that a stream may be ahead of its reader
IDLE_SECONDS = 60.0  # how long the engine sleeps at most

log = logging.getLogger("rill")


@dataclass(frozen=True)
class Delivery:
    """What a round made for one stream. `gone`: the stream has left the engine, and its slot is free."""

    stream: Stream
    text: str = ""
    end: End | None = None
    error: EngineError | None = None
    gone: bool = False


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
        deliver: Callable[[list[Delivery]], None],
        round_seconds: float = 0.010,
    ) -> None:
        self._decoder, self._codec, self._rows, self._deliver = decoder, codec, rows, deliver
        self._round_seconds = round_seconds
        self._pace = StepTimes()
        self._inbox: deque[tuple[bool, Stream]] = deque()  # (joins, stream)
        self._streams: dict[int, Stream] = {}
        self._newcomers_last = self._filters_last = False
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
        _, room = self._rows.room(time.monotonic(), BUFFER)
        return int((room <= 0).sum())

    def stop(self) -> None:
        """End the thread after the round in progress, and wait for it."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _warm_up(self) -> None:
        """Run all batch sizes once for the memory and once for the time, on rows that nobody uses yet."""
        for filters, batch in product((False, True), WARM_UP):
            slots = np.arange(min(batch, self._rows.slots))
            r = Round(slots, np.full(len(slots), 4), np.zeros(len(slots), np.int64), filters)
            for _ in range(2):
                started = time.perf_counter()
                self._decoder.run(filters, self._rows.feeds(r))
            self._pace.learn(r, time.perf_counter() - started)

    # ---- the engine thread

    def _main(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._admit()
            planned = self._schedule(time.monotonic())
            if planned is None:
                self._sleep()
                continue
            try:
                started = time.perf_counter()
                tokens, state = self._decoder.run(planned.filters, self._rows.feeds(planned))
                self._pace.learn(planned, time.perf_counter() - started)
            except Exception as error:  # whatever it is: these streams cannot go on, the others can
                log.exception("an engine round failed")
                self._fail(planned, error)
                continue
            self._rows.advance(planned, tokens, state)
            self._update(planned, tokens)

    def _admit(self) -> None:
        """Let streams join and leave, in the order they asked."""
        now, gone = time.monotonic(), []
        while self._inbox:
            joins, stream = self._inbox.popleft()
            if joins:
                self._rows.enter(stream.slot, stream.order, now)
                self._streams[stream.slot] = stream
            elif self._streams.get(stream.slot) is stream:  # else it was complete, and is gone
                self._release(stream.slot)
                gone.append(Delivery(stream, gone=True))
        self._send(gone)

    def _schedule(self, now: float) -> Round | None:
        """The next round, or None if no stream can go on.

        Whoever can have the first character within a short round goes first, in a round of their own; after that
        everybody has a turn, the longest unserved first where there are too many for one round. A round is of one kind,
        with filters or without, so that no stream pays for what its neighbours asked.
        """
        rows = self._rows
        slots, room = rows.room(now, BUFFER)
        slots, room = slots[room > 0], room[room > 0]
        if not slots.size:
            return None
        prompt = rows.prompt_left[slots]
        newcomers = (rows.made[slots] == 0) & (prompt < self._pace.steps(1, FIRST_SECONDS))
        self._newcomers_last = bool(newcomers.any()) and not self._newcomers_last
        chosen = np.flatnonzero(newcomers) if self._newcomers_last else np.arange(len(slots))

        filtered = rows.filtered[slots[chosen]]
        self._filters_last = not self._filters_last if filtered.any() and not filtered.all() else bool(filtered[0])
        chosen = chosen[filtered == self._filters_last]
        if len(chosen) > COHORT and not self._newcomers_last:
            chosen = chosen[np.argsort(rows.served[slots[chosen]], kind="stable")[:COHORT]]
        slots, room, prompt = slots[chosen], room[chosen], prompt[chosen]

        seconds = FIRST_SECONDS if self._newcomers_last else self._round_seconds
        most = self._pace.steps(len(slots), seconds, self._filters_last)
        if self._newcomers_last:
            most = min(most, int(prompt.max()) + 1)
        steps = np.minimum(prompt + room, most)
        return Round(slots, steps, np.minimum(prompt, steps), self._filters_last)

    def _update(self, r: Round, tokens: Ids) -> None:
        """Hand the round's texts to the event loop, and let go of the streams that are complete."""
        now = time.monotonic()
        deliveries = []
        complete = self._rows.left[r.slots] == 0
        texts = self._codec.decode(tokens.T, r.prompted, r.steps)
        for slot, text, done in zip(r.slots.tolist(), texts, complete.tolist(), strict=True):
            stream = self._streams[slot]
            stream.entered = stream.entered or now
            if done:
                self._release(slot)
            if text:
                deliveries.append(Delivery(stream, text, End.LENGTH if done else None, gone=done))
        self._send(deliveries)

    def _fail(self, r: Round, error: Exception) -> None:
        failure = EngineError(f"an engine round failed: {error}")
        deliveries = [Delivery(self._streams[slot], error=failure, gone=True) for slot in r.slots.tolist()]
        for slot in r.slots.tolist():
            self._release(slot)
        self._send(deliveries)

    def _release(self, slot: int) -> None:
        del self._streams[slot]
        self._rows.leave(slot)

    def _send(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            self._loop.call_soon_threadsafe(self._deliver, deliveries)

    def _sleep(self) -> None:
        """Wait for the event loop, or for the next paced stream's turn."""
        self._idle = True
        # What the event loop did before it could see `_idle` is seen here.
        now = time.monotonic()
        _, room = self._rows.room(now, BUFFER)
        if not (room > 0).any():
            self._wake.wait(min(self._rows.next_due(now, BUFFER), IDLE_SECONDS))
        self._idle = False


class StepTimes:
    """How long a step takes at each batch size (in powers of two), learned from the rounds."""

    def __init__(self) -> None:
        self._seconds = np.full((2, 32), np.nan)

    def learn(self, r: Round, seconds: float) -> None:
        """A round took so long."""
        index = int(r.filters), len(r.slots).bit_length()
        known, seen = self._seconds[index], seconds / r.time
        self._seconds[index] = seen if np.isnan(known) else 0.8 * known + 0.2 * seen

    def steps(self, batch: int, seconds: float, filters: bool = False) -> int:
        """How many steps of `batch` rows fit in so many seconds: at least 1, at most MAX_STEPS."""
        known = self._seconds[int(filters), batch.bit_length()]
        return 16 if np.isnan(known) else int(min(max(seconds / known, 1), MAX_STEPS))
