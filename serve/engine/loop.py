"""The engine: all live streams of a model advance together, in rounds.

One thread owns the serving graphs. It repeats four steps: plan a round (which rows, how many steps each), run it,
collect its results, and deliver them to the event loop in one go. Streams join and leave between rounds, so a
cancellation or a deadline takes effect within one. A stream whose reader is behind is parked: it is in no round and
costs nothing.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import cast

import numpy as np

from rill.serve.engine.automata import Automata, DeviceTables
from rill.serve.engine.decoder import NO_TABLES, Decoder, Values
from rill.serve.engine.device_turns import Participant
from rill.serve.engine.output import Arrays, OutputProcessor, pieces
from rill.serve.engine.rows import CONSTRAINED, CONSTRAINED_LOGPROBS, LOGPROBS, PLAIN, TOP_K, TOP_P, TOTALS, Round, Rows
from rill.serve.engine.scheduler import Scheduler
from rill.serve.engine.states import Batch, States
from rill.serve.engine.stream import Delivery, Stream, TotalStream
from rill.serve.engine.text_codec import TextCodec
from rill.serve.engine.timer import StageTimer
from rill.serve.engine.types import FinishReason, Piece
from rill.serve.errors import BrokenEngineError, DrainingError, EngineError

IDLE_SECONDS = 60.0  # the longest sleep of the engine
NAP_SECONDS = 0.005  # the shortest while paced streams wait: those that come due in it share a round
GIVE_WAY_SECONDS = 0.0007  # the engine's pause while first characters are sent
CROWDED_TURNS = 2  # turns between two notifications of a reader while calls wait for a slot: the event loop is busy
ROUNDS_AT_ONCE = 64  # reported by one call of `on_rounds`: reported alone, each costs several times as much

RoundCounts = tuple[int, int, float]  # rows, steps, seconds

log = logging.getLogger("rill")


class Engine:
    """Rounds over the streams of one model; its public methods are called from the event loop.

    `deliver` is called on `loop`, the event loop, with the results of each round. A round lasts about `round_seconds`
    at most, or one step; it takes turns on the device as `participant`. `on_rounds` is called by the engine's thread,
    now and then, with the counts of the rounds since its last call. `is_crowded` says whether calls wait for a slot. An
    engine may be made in any thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        codec: TextCodec,
        rows: Rows,
        states: States,
        automata: Automata,
        deliver: Callable[[Delivery], None],
        round_seconds: float,
        participant: Participant,
        loop: asyncio.AbstractEventLoop,
        on_rounds: Callable[[Sequence[RoundCounts]], None],
        is_crowded: Callable[[], bool],
        timer: StageTimer,
    ) -> None:
        self._decoder, self._codec, self._rows, self._states = decoder, codec, rows, states
        self._participant, self._loop, self._is_crowded = participant, loop, is_crowded
        self._on_delivery, self._on_rounds = timer.around("decode", deliver), on_rounds
        self._timer, self._lap = timer, timer.lap
        self._tables = DeviceTables(automata, decoder.device, decoder.device_id)
        self._output = OutputProcessor(decoder, codec, rows, states, automata)
        self._scheduler = Scheduler(rows, decoder, round_seconds)
        self._inbox: deque[tuple[Callable[[Stream], None], Stream]] = deque()
        self._outbox: list[Delivery] = []
        self._streams: dict[int, Stream] = {}  # by slot
        self._notify_at: dict[Stream, float] = {}  # when a reader with text to read is notified, time.monotonic()
        self._unreported: list[RoundCounts] = []
        self._wake = threading.Event()
        self._idle = self._stopping = self._is_collecting = False
        self._warm_up()
        self._thread = threading.Thread(target=self._main, name="rill-engine", daemon=True)
        self._thread.start()

    # ---- called from the event loop

    def join(self, stream: Stream) -> None:
        """Let `stream` take part in the rounds from now on, in its slot, which is free."""
        self._rows.read[stream.slot] = stream.position
        self._enqueue(self._enter, stream)

    def leave(self, stream: Stream) -> None:
        """Forget `stream`, whatever it is doing; a Delivery says when it has left."""
        self._enqueue(self._remove, stream)

    def finish(self, stream: Stream, reason: FinishReason) -> None:
        """End `stream` where it is, with a snapshot, unless it has ended; a Delivery says when it has left."""
        self._enqueue(partial(self._finish, reason), stream)

    def mark_read(self, stream: Stream, characters: int) -> None:
        """The reader of `stream`, which is in the engine, has taken so many more characters."""
        self._rows.read[stream.slot] += characters
        # While the engine sleeps, only a stream that was blocked by its reader has become ready.
        if self._idle and self._rows.was_blocked_by_reader(stream.slot, characters):
            self._wake.set()

    def parked(self) -> int:
        """Streams that wait for their reader or their pace."""
        return int((self._rows.room(time.monotonic()) <= 0).sum())

    def stop(self) -> None:
        """End the thread after the round in progress, and wait for it."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _enqueue(self, action: Callable[[Stream], None], stream: Stream) -> None:
        self._inbox.append((action, stream))
        self._wake.set()

    def _warm_up(self) -> None:
        """Run all batch sizes once for the memory and once for the time, on rows that are not in use yet."""
        kinds = [PLAIN, TOP_P, LOGPROBS, TOP_K]
        if self._decoder.has_constrained:
            kinds += [CONSTRAINED, CONSTRAINED_LOGPROBS]
        for kind, batch in product(kinds, self._decoder.warm_up):
            slots = np.arange(min(batch, self._rows.slots))
            zeros = np.zeros(len(slots), np.int64)
            r = Round(slots, zeros + 4, zeros, kind, self._decoder.padding(len(slots)))
            for _ in range(2):
                with self._participant.turn():
                    started = time.perf_counter()
                    self._decoder.run(r.variant, *self._inputs(r))
            self._scheduler.times.learn(r, time.perf_counter() - started)

    # ---- the engine's thread

    def _main(self) -> None:
        while True:
            self._wake.clear()
            if self._stopping:  # read after clearing: a stop that comes later wakes the thread again
                self._participant.close()
                return
            planned = None
            try:
                self._admit()
                now = time.monotonic()
                planned = self._plan(now)
                if planned:
                    self._advance(planned, now)
                else:
                    self._deliver()
                    self._sleep()
            except Exception as error:  # any: the streams of this round cannot continue, the others can
                log.exception("an engine round failed")
                self._fail(planned, EngineError(f"an engine round failed: {error}"))
                self._probe()

    def _advance(self, r: Round, now: float) -> None:
        """Run a round, and collect its results."""
        feeds, before, tables = self._inputs(r)
        self._lap("assemble")
        # The event loop sends the last round's texts while the graph runs: both have the GIL when they need it.
        self._deliver()
        results, after = self._run(r, feeds, before, tables)
        self._collect(r, feeds, before, results, after, now)
        if r.newcomers and len(r.slots) >= len(self._streams):
            # No other stream waits: the event loop can send the first characters without waiting for the GIL.
            self._deliver()
            self._wake.wait(GIVE_WAY_SECONDS)
            self._lap("idle")

    # ---- streams that join and leave

    def _admit(self) -> None:
        """Let streams join and leave, in the order in which they asked."""
        while self._inbox:
            action, stream = self._inbox.popleft()
            action(stream)
        self._rows.settle()

    def _enter(self, stream: Stream) -> None:
        self._streams[stream.slot] = stream
        self._rows.enter(stream.slot, stream.spec, time.monotonic())
        self._output.enter(stream.slot, stream.spec)
        self._states.begin(stream.slot, stream.spec.state)
        if self._output.is_over(stream.slot) and stream.slot not in self._rows.reading:
            self._finish(FinishReason.STOP, stream)

    def _remove(self, stream: Stream) -> None:
        if self._streams.get(stream.slot) is stream:  # else it was complete, and has left
            self._release(stream.slot)
            self._outbox.append(Delivery(ended={stream: None}))

    def _finish(self, reason: FinishReason, stream: Stream) -> None:
        if self._streams.get(stream.slot) is stream:
            snapshot = self._output.snapshot(stream.slot)
            self._release(stream.slot)
            if snapshot:
                self._outbox.append(Delivery([stream], lambda: [Piece("", snapshot)], {stream: reason}))
            else:  # the same call can be made elsewhere
                error = DrainingError("the server is going away, and nothing has been made yet")
                self._outbox.append(Delivery(ended={stream: None}, error=error))

    def _release(self, slot: int) -> None:
        self._notify_at.pop(self._streams.pop(slot), None)
        self._rows.leave(slot)
        self._output.leave(slot)

    # ---- plan

    def _plan(self, now: float) -> Round | None:
        """The next round, or None if no stream can advance. Readers of streams that sit a turn out are notified."""
        planned = self._scheduler.plan(now, self._is_crowded())
        if not (planned and planned.newcomers):
            slots = set(planned.slots.tolist()) if planned else set()
            self._notify_readers([stream for stream in self._notify_at if stream.slot not in slots])
        self._lap("schedule")
        return planned

    # ---- run

    def _inputs(self, r: Round) -> tuple[Arrays, Batch, Values]:
        """The inputs of the serving graph for a round, the states before it, and the tables of a constrained one."""
        tables = self._tables.values() if r.is_constrained else NO_TABLES
        return self._rows.feeds(r), self._states.batch(self._rows.batch(r)), tables

    def _run(self, r: Round, feeds: Arrays, before: Batch, tables: Values) -> tuple[Arrays, Batch]:
        """The outputs of the serving graph for a round, [time, rows, ...] without padding, and the states after it."""
        with self._participant.turn(urgent=r.newcomers):
            started = time.perf_counter()
            results, after = self._decoder.run(r.variant, feeds, before, tables)
            seconds = time.perf_counter() - started
        self._scheduler.record(r, seconds)
        self._unreported.append((len(r.slots), r.time, seconds))
        if len(self._unreported) >= ROUNDS_AT_ONCE:
            self._report_rounds()
        self._timer.count(r)
        self._lap("run")
        return {name: values[:, : len(r.slots)] for name, values in results.items()}, after

    def _report_rounds(self) -> None:
        self._on_rounds(self._unreported)
        self._unreported.clear()

    # ---- collect

    def _collect(self, r: Round, feeds: Arrays, before: Batch, results: Arrays, after: Batch, now: float) -> None:
        """Take over the results of a round, and release the streams that are complete."""
        self._is_collecting = True
        self._states.keep(self._rows.batch(r), after)
        if r.kind == TOTALS:
            self._collect_totals(r, results)
            return
        streams = [self._streams[slot] for slot in r.slots.tolist()]
        if self._rows.starting:
            for stream in streams:
                stream.entered = stream.entered or now
        notify_at = now + self._scheduler.turn_seconds * (CROWDED_TURNS if self._is_crowded() else 1)
        for stream in streams:
            if stream.has_reader:
                self._notify_at.setdefault(stream, notify_at)
        output = self._output.collect(r, feeds, before, results, after)
        for column in output.finished:
            self._release(int(r.slots[column]))
        ended = {streams[column]: reason for column, reason in output.finished.items()}
        self._outbox.append(Delivery(streams, partial(pieces, self._codec, results, output), ended))
        self._is_collecting = False
        now = time.monotonic()
        self._notify_readers([stream for stream, due in self._notify_at.items() if due <= now])
        self._lap("harvest")

    def _collect_totals(self, r: Round, results: Arrays) -> None:
        """Take over the results of a round without readers: nothing is delivered but the totals of complete streams."""
        self._rows.advance(r, results["tokens"])
        self._rows.add_totals(r, results["logprobs"])
        complete = [slot for slot in r.slots.tolist() if self._rows.is_complete(slot)]
        totals = {cast(TotalStream, self._streams[slot]): float(self._rows.table["total"][slot]) for slot in complete}
        for slot in complete:
            self._release(slot)
        if totals:
            self._outbox.append(Delivery(ended=dict.fromkeys(totals, FinishReason.LENGTH), totals=totals))
        self._is_collecting = False
        self._lap("harvest")

    # ---- deliver

    def _notify_readers(self, streams: Sequence[Stream]) -> None:
        """Let the readers of `streams` have their text: not after each round, since each message has its cost."""
        if streams:
            self._outbox.append(Delivery(readers=streams))
        for stream in streams:
            del self._notify_at[stream]

    def _deliver(self) -> None:
        """Wake the event loop once for all that has happened."""
        if self._outbox:
            self._loop.call_soon_threadsafe(self._deliver_all, self._outbox)
            self._outbox = []
        self._lap("hand_over")

    def _deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        """On the event loop."""
        for delivery in deliveries:
            self._on_delivery(delivery)

    def _sleep(self) -> None:
        """Wait for the event loop, or until the next paced stream is due."""
        self._report_rounds()
        self._participant.idle()
        self._idle = True
        # Whatever the event loop did before it could see `_idle` is seen here.
        now = time.monotonic()
        if not (self._rows.room(now) > 0).any():
            self._wake.wait(min(max(self._rows.next_due(now), NAP_SECONDS), IDLE_SECONDS))
        self._idle = False
        self._lap("idle")

    # ---- failures

    def _fail(self, planned: Round | None, error: EngineError) -> None:
        """End the streams of a round where they were before it, or all streams if no round was planned."""
        slots = list(self._streams) if planned is None else planned.slots.tolist()
        streams = [self._streams[slot] for slot in slots if slot in self._streams]
        last_pieces = [self._last_piece(stream.slot) for stream in streams]
        for stream in streams:
            self._release(stream.slot)
        self._is_collecting = False
        self._outbox.append(Delivery(streams, lambda: last_pieces, dict.fromkeys(streams), error))

    def _last_piece(self, slot: int) -> Piece:
        """The snapshot of a stream before the round that failed, if there is one."""
        try:
            return Piece("", None if self._is_collecting else self._output.snapshot(slot))
        except Exception:  # the device may have failed, and the states with it
            log.exception("the state of a stream is lost")
            return Piece("")

    def _probe(self) -> None:
        """Run one step of a row that is not in use: if that fails too, no stream can continue, now or later."""
        one = np.ones(1, np.int64)
        r = Round(one * self._rows.slots, one, 0 * one, PLAIN, self._decoder.padding(1))
        try:
            self._decoder.run(r.variant, *self._inputs(r))
        except Exception as error:
            log.exception("the serving graph no longer runs")
            self._fail(None, BrokenEngineError(f"the serving graph no longer runs: {error}"))
