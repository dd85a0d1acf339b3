"""The engine: all live streams of a model advance together, in rounds.

One thread owns the serving graphs. Again and again it plans a round (`_schedule`: which rows, how many steps), runs it
(`_run`) and hands what was made to the event loop in one go (`_flush`). Streams join and leave between rounds, so
that a cancellation or a deadline takes effect within one. Streams whose reader is behind are parked: they are in no
round and cost nothing.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rill.serve.engine.decoder import Decoder
from rill.serve.engine.device_turns import Participant
from rill.serve.engine.output import OutputProcessor, pieces
from rill.serve.engine.rows import LOGPROBS, PLAIN, TOP_K, TOP_P, Round, Rows
from rill.serve.engine.scheduler import Scheduler
from rill.serve.engine.states import Batch, States
from rill.serve.engine.stream import Delivery, Stream
from rill.serve.engine.text_codec import Ids, TextCodec
from rill.serve.engine.types import FinishReason, Piece
from rill.serve.errors import BrokenEngineError, DrainingError, EngineError
from rill.serve.observe.metrics import ModelMetrics

IDLE_SECONDS = 60.0  # how long the engine sleeps at most
GIVE_WAY_SECONDS = 0.0007  # ... while first characters go out
NAP_SECONDS = 0.005  # ... and at least: paced streams that are due meanwhile share a round
CROWDED_TURNS = 2  # after which a reader is told, where calls wait for a slot: the event loop is busy with them
ROUNDS = 64  # that are written down at once: alone, each costs several times as much (`rill.serve.api.call`)

Arrays = Mapping[str, NDArray[Any]]

log = logging.getLogger("rill")


class Engine:
    """Rounds over the streams of one model; its public methods are called from the event loop.

    `deliver` is called on `loop`, the event loop, with what each round made. A round lasts about `round_seconds` at
    most, or one step; it takes turns as `participant`. `is_crowded` says whether calls wait for a slot. An engine may
    be made in any thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        codec: TextCodec,
        rows: Rows,
        states: States,
        deliver: Callable[[Delivery], None],
        round_seconds: float,
        participant: Participant,
        loop: asyncio.AbstractEventLoop,
        metrics: ModelMetrics,
        is_crowded: Callable[[], bool],
    ) -> None:
        self._decoder, self._codec, self._rows, self._states, self._deliver = decoder, codec, rows, states, deliver
        self._output = OutputProcessor(decoder, codec, rows, states)
        self._scheduler = Scheduler(rows, decoder, round_seconds)
        self._inbox: deque[tuple[Callable[[Stream], None], Stream]] = deque()
        self._outbox: list[Delivery] = []
        self._streams: dict[int, Stream] = {}
        self._notify_at: dict[Stream, float] = {}  # when readers are to be told of what has been made, time.monotonic()
        self._wake = threading.Event()
        self._idle = self._stopping = self._is_updating = False
        self._participant, self._loop, self._metrics, self._is_crowded = participant, loop, metrics, is_crowded
        self._rounds: list[tuple[int, int, float]] = []  # that the metrics do not have yet: rows, steps, seconds
        self._warm_up()
        self._thread = threading.Thread(target=self._main, name="rill-engine", daemon=True)
        self._thread.start()

    # ---- called from the event loop

    def join(self, stream: Stream) -> None:
        """Let `stream` take part in the rounds from now on, in its slot, which is free."""
        self._rows.read[stream.slot] = stream.position
        self._enqueue(self._enter, stream)

    def leave(self, stream: Stream) -> None:
        """Forget `stream`, whatever it is doing; a Delivery says when it is gone."""
        self._enqueue(self._remove, stream)

    def finish(self, stream: Stream, why: FinishReason) -> None:
        """End `stream` where it is, with a snapshot, unless it has ended; a Delivery says when it is gone."""
        self._enqueue(partial(self._finish, why), stream)

    def mark_read(self, stream: Stream, characters: int) -> None:
        """The reader of `stream`, which is not gone, has taken so many more characters."""
        self._rows.read[stream.slot] += characters
        # While the engine sleeps, only what its reader has kept from going on can go on now.
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

    def _enqueue(self, what: Callable[[Stream], None], stream: Stream) -> None:
        self._inbox.append((what, stream))
        self._wake.set()

    def _warm_up(self) -> None:
        """Run all batch sizes once for the memory and once for the time, on rows that nobody uses yet."""
        for kind, batch in product((PLAIN, TOP_P, LOGPROBS, TOP_K), self._decoder.warm_up):
            slots = np.arange(min(batch, self._rows.slots))
            zeros = np.zeros(len(slots), np.int64)
            r = Round(slots, zeros + 4, zeros, kind, self._decoder.padding(len(slots)))
            for _ in range(2):
                with self._participant.turn():
                    started = time.perf_counter()
                    self._decoder.run(r.variant, self._rows.feeds(r), self._states.batch(self._rows.batch(r)))
            self._scheduler.times.learn(r, time.perf_counter() - started)

    # ---- the engine thread

    def _main(self) -> None:
        while True:
            self._wake.clear()
            if self._stopping:  # looked at after clearing: a stop that comes later wakes us again
                self._participant.close()
                return
            planned = None
            try:
                self._admit()
                now = time.monotonic()
                planned = self._schedule(now)
                if planned:
                    self._run(planned, now)
                else:
                    self._flush()
                    self._sleep()
            except Exception as error:  # whatever it is: its streams cannot go on, the others can
                log.exception("an engine round failed")
                self._fail(planned, EngineError(f"an engine round failed: {error}"))
                self._probe()

    def _admit(self) -> None:
        """Let streams join and leave, in the order they asked."""
        while self._inbox:
            what, stream = self._inbox.popleft()
            what(stream)
        self._rows.settle()

    def _enter(self, stream: Stream) -> None:
        self._streams[stream.slot] = stream
        self._rows.enter(stream.slot, stream.spec, time.monotonic())
        self._output.enter(stream.slot, stream.spec)
        self._states.begin(stream.slot, stream.spec.state)

    def _remove(self, stream: Stream) -> None:
        if self._streams.get(stream.slot) is stream:  # else it was complete, and is gone
            self._release(stream.slot)
            self._outbox.append(Delivery((), list, {stream: None}))

    def _finish(self, why: FinishReason, stream: Stream) -> None:
        if self._streams.get(stream.slot) is stream:
            snapshot = self._output.snapshot(stream.slot)
            self._release(stream.slot)
            if snapshot:
                self._outbox.append(Delivery([stream], lambda: [Piece("", snapshot)], {stream: why}))
            else:  # the same call can be made elsewhere
                error = DrainingError("the server is going away, and nothing has been made yet")
                self._outbox.append(Delivery((), list, {stream: None}, error))

    def _schedule(self, now: float) -> Round | None:
        """The next round, or None if no stream can go on; the readers of those who sit it out are told."""
        planned = self._scheduler.plan(now, self._is_crowded())
        if not (planned and planned.newcomers):
            slots = set(planned.slots.tolist()) if planned else set()
            self._notify_readers([stream for stream in self._notify_at if stream.slot not in slots])
        return planned

    def _run(self, r: Round, now: float) -> None:
        """One call of the graph, and what comes of it."""
        feeds, before = self._assemble(r)
        # The event loop sends the last round's texts while the graph makes the next: both have the GIL when they need
        # it.
        self._flush()
        made, after = self._call(r, feeds, before)
        self._update(r, feeds["token"], before, made, after, now)
        if r.newcomers and len(r.slots) >= len(self._streams):
            # Nobody else waits: the event loop can send the first characters without waiting for the GIL.
            self._flush()
            self._wake.wait(GIVE_WAY_SECONDS)

    def _assemble(self, r: Round) -> tuple[Arrays, Batch]:
        """The inputs of the serving graph, and the states."""
        return self._rows.feeds(r), self._states.batch(self._rows.batch(r))

    def _call(self, r: Round, feeds: Arrays, before: Batch) -> tuple[Arrays, Batch]:
        """What the serving graph made of them, without padding, and the states after it."""
        with self._participant.turn(urgent=r.newcomers):
            started = time.perf_counter()
            made, after = self._decoder.run(r.variant, feeds, before)
            seconds = time.perf_counter() - started
        self._scheduler.record(r, seconds)
        self._rounds.append((len(r.slots), r.time, seconds))
        if len(self._rounds) >= ROUNDS:
            self._count_rounds()
        return {name: values[:, : len(r.slots)] for name, values in made.items()}, after

    def _update(
        self,
        r: Round,
        entry_tokens: Ids,
        before: Batch,
        made: Arrays,
        after: Batch,
        now: float,
    ) -> None:
        """Take over what a round made, and let go of the streams that are complete."""
        self._is_updating = True
        self._states.keep(self._rows.batch(r), after)
        streams = [self._streams[slot] for slot in r.slots.tolist()]
        if self._rows.starting:
            for stream in streams:
                stream.entered = stream.entered or now
        due = now + self._scheduler.turn_seconds * (CROWDED_TURNS if self._is_crowded() else 1)
        for stream in streams:
            self._notify_at.setdefault(stream, due)
        output = self._output.collect(r, entry_tokens, before, after, made["tokens"])
        for column in output.finished:
            self._release(int(r.slots[column]))
        ended = {streams[column]: end for column, end in output.finished.items()}
        self._outbox.append(Delivery(streams, partial(pieces, self._codec, r, made, output), ended))
        self._is_updating = False
        now = time.monotonic()
        self._notify_readers([stream for stream, due in self._notify_at.items() if due <= now])

    def _notify_readers(self, streams: Sequence[Stream]) -> None:
        """Let the readers of `streams` have what has been made: not after each round, since a message has its price."""
        if streams:
            self._outbox.append(Delivery((), list, {}, readers=streams))
        for stream in streams:
            del self._notify_at[stream]

    def _fail(self, planned: Round | None, error: EngineError) -> None:
        """End the streams of a round where they were before it, or all if it was not even planned."""
        slots = list(self._streams) if planned is None else planned.slots.tolist()
        streams = [self._streams[slot] for slot in slots if slot in self._streams]
        rest = [self._last_piece(stream.slot) for stream in streams]
        for stream in streams:
            self._release(stream.slot)
        self._is_updating = False
        self._outbox.append(Delivery(streams, lambda: rest, dict.fromkeys(streams), error))

    def _last_piece(self, slot: int) -> Piece:
        """The snapshot of a stream before the round that failed, if it can be had."""
        try:
            return Piece("", None if self._is_updating else self._output.snapshot(slot))
        except Exception:  # the device may be gone, and the states with it
            log.exception("the state of a stream is lost")
            return Piece("")

    def _probe(self) -> None:
        """One step of a row that is nobody's: if that fails too, no stream can go on, now or later."""
        one = np.ones(1, np.int64)
        r = Round(one * self._rows.slots, one, 0 * one, PLAIN, self._decoder.padding(1))
        try:
            self._decoder.run(r.variant, *self._assemble(r))
        except Exception as error:
            log.exception("the serving graph does not run any more")
            self._fail(None, BrokenEngineError(f"the serving graph does not run any more: {error}"))

    def _release(self, slot: int) -> None:
        self._notify_at.pop(self._streams.pop(slot), None)
        self._rows.leave(slot)
        self._output.leave(slot)

    def _flush(self) -> None:
        """Wake the event loop once for all that has happened."""
        if self._outbox:
            self._loop.call_soon_threadsafe(self._deliver_all, self._outbox)
            self._outbox = []

    def _deliver_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._deliver(delivery)

    def _count_rounds(self) -> None:
        self._metrics.ran(self._rounds)
        self._rounds.clear()

    def _sleep(self) -> None:
        """Wait for the event loop, or for the next paced stream's turn."""
        self._count_rounds()
        self._participant.idle()
        self._idle = True
        # What the event loop did before it could see `_idle` is seen here.
        now = time.monotonic()
        if not (self._rows.room(now) > 0).any():
            self._wake.wait(min(max(self._rows.next_due(now), NAP_SECONDS), IDLE_SECONDS))
        self._idle = False
