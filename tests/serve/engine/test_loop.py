"""The engine alone, on a real graph: failing rounds, and the composition of rounds."""

import asyncio
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from live_streams import live_stream

from rill.sampling import Sampling
from rill.serve.engine import loop as engine_module
from rill.serve.engine import scheduler as schedule
from rill.serve.engine.decoder import MAX_ROWS, NO_TABLES, Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.rows import BUFFER
from rill.serve.engine.stream import Delivery
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import EngineError
from rill.serve.models.model import READERS_AT_ONCE, Model

NONE = np.full(1, -1)  # constrained graphs have no forced characters


class RecordingDecoder(Decoder):
    """A decoder that records its rounds, and fails once when `fail` is set."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rounds, self.fail = [], False

    def run(self, variant, feeds, states, tables=NO_TABLES):
        if self.fail:
            self.fail = False
            raise RuntimeError("out of memory")
        self.rounds.append(
            (variant, feeds["token"].size, feeds["uniforms"].shape[0], bool((feeds.get("forced", NONE) >= 0).any()))
        )
        return super().run(variant, feeds, states, tables)


@pytest.fixture
async def model(tiny):
    made = Model(tiny, RecordingDecoder(tiny, CPU), 300, 2000, 0.010)
    made.decoder = made.engine._decoder
    made.decoder.rounds.clear()  # those of the warm-up
    yield made
    made.engine.stop()
    assert made.slots.running == 0


def spec(count, prompt=1, seed=0, **sampling):
    return StreamSpec(np.ones(prompt, np.int64), prompt, Sampling(**sampling), seed, count, 0.0)


async def text_of(model, wanted):
    async with live_stream(model, wanted) as stream:
        return await read_on(model, stream)


async def read_on(model, stream):
    text, end = "", None
    while end is None:
        piece, end = await stream.next_piece()
        model.mark_sent(stream, piece.text)
        text += piece.text
    assert end is FinishReason.LENGTH
    return text


async def until_free(model):
    while model.slots.running:
        await asyncio.sleep(0.01)


async def failing(model, on_text):
    """The text, snapshot and error of a stream that fails after `on_text` was called with its text."""
    got, snapshot = "", None
    async with live_stream(model, spec(0)) as stream:
        try:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                got, snapshot = got + piece.text, piece.snapshot
                if not snapshot:
                    on_text(got)
        except EngineError as error:
            return got, snapshot, error


async def test_a_failing_round_fails_its_streams_and_no_others(model):
    """The text before it is sent, with a snapshot from which the same text continues."""
    expected = await text_of(model, spec(10_000))

    def fail(got):
        model.decoder.fail = len(got) > 500

    got, snapshot, error = await failing(model, fail)
    assert type(error) is EngineError
    assert "out of memory" in str(error)
    assert snapshot.position == len(got)
    rest = replace(spec(50), prompt=np.array([snapshot.token]), position=len(got), state=snapshot.state)
    assert got + await text_of(model, rest) == expected[: len(got) + 50]
    await until_free(model)


@pytest.mark.parametrize("stage", ["keep", "collect"])
async def test_a_failure_after_a_round_leaves_no_snapshot(model, monkeypatch, stage):
    """The results of the round may have been taken over in part."""
    owner = model.engine._states if stage == "keep" else model.engine._output
    right, failures = getattr(owner, stage), []

    def fail_once(*arguments):
        if failures:
            raise failures.pop()
        return right(*arguments)

    monkeypatch.setattr(owner, stage, fail_once)
    got, snapshot, error = await failing(model, lambda got: got and failures.append(RuntimeError("broken")))
    assert "broken" in str(error)
    assert got
    assert snapshot is None
    failures.clear()
    assert len(await text_of(model, spec(20))) == 20
    await until_free(model)


async def test_an_engine_that_keeps_failing_reports_it(tiny):
    """Each stream gets an error, later ones included."""
    broken = []
    model = Model(tiny, RecordingDecoder(tiny, CPU), 4, 4, 0.010, on_broken=broken.append)
    model.engine._decoder.run = lambda *arguments: 1 / 0
    for _ in range(2):
        with pytest.raises(EngineError, match="division by zero"):
            await text_of(model, spec(10))
    await until_free(model)
    assert len(broken) == 2
    model.engine.stop()


@pytest.mark.parametrize("broken", ["_plan", "_admit"])
async def test_a_failure_outside_a_round_fails_its_streams(model, monkeypatch, broken):
    """Whatever breaks, a waiting call gets an error, and the engine continues."""
    right = getattr(engine_module.Engine, broken)
    failures = [RuntimeError("broken")]

    def fail_once(self, *arguments):
        if failures and self._streams:
            raise failures.pop()
        return right(self, *arguments)

    async with live_stream(model, spec(0)) as doomed:
        await doomed.next_piece()
        monkeypatch.setattr(engine_module.Engine, broken, fail_once)
        with pytest.raises(EngineError, match="broken"):
            await read_on(model, doomed)
    assert len(await text_of(model, spec(20))) == 20
    await until_free(model)


async def test_newcomers_go_first_in_a_short_round(model):
    async with live_stream(model, spec(0)) as busy:
        await busy.next_piece()
        await asyncio.gather(*(text_of(model, spec(1, prompt=5, seed=seed)) for seed in range(20)))
    await until_free(model)
    # Streams that join while such a round runs may get their characters in the long round after it.
    short = [rows for _, rows, time, prompted in model.decoder.rounds if prompted and time <= 5]
    assert max(short) > 1


@pytest.mark.parametrize("kind", [{}, {"top_k": 5}], ids=["plain", "filtered"])
async def test_newcomers_starve_neither_kind_of_stream(model, kind):
    """One stream of each kind, and an endless sequence of newcomers of one kind."""

    async def newcomers():
        while True:
            await text_of(model, spec(1, **kind))

    async def read(stream):
        while True:
            piece, _ = await stream.next_piece()
            model.mark_sent(stream, piece.text)

    async with live_stream(model, spec(0)) as plain, live_stream(model, spec(0, top_k=3)) as filtered:
        tasks = [asyncio.create_task(work) for work in (newcomers(), newcomers(), read(plain), read(filtered))]
        await asyncio.sleep(0.3)
        before = plain.sent, filtered.sent
        # A fair share is thousands of characters a second, dozens on a busy machine; a starved stream gets none.
        async with asyncio.timeout(20):
            while min(plain.sent - before[0], filtered.sent - before[1]) <= 50:
                await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await until_free(model)


async def test_a_stop_while_the_engine_wakes_is_not_lost(tiny, monkeypatch):
    model = Model(tiny, Decoder(tiny, CPU), 4, 4, 0.010)
    clear = model.engine._wake.clear
    stopped = threading.Event()

    def clear_late():
        """Clear the wake-up just after a `stop`."""
        if not stopped.is_set():
            model.engine._stopping = True
            model.engine._wake.set()
            stopped.set()
        clear()

    monkeypatch.setattr(model.engine._wake, "clear", clear_late)
    model.engine._wake.set()
    model.engine._thread.join(timeout=10)
    assert not model.engine._thread.is_alive()


async def test_rounds_are_of_one_kind_and_of_bounded_size(model):
    plain = [text_of(model, spec(400, seed=seed)) for seed in range(150)]
    sampled = [text_of(model, spec(400, seed=seed, top_p=0.9)) for seed in range(100)]
    filtered = [text_of(model, spec(400, seed=seed, top_k=5)) for seed in range(50)]
    await asyncio.gather(*plain, *sampled, *filtered)
    assert {variant for variant, *_ in model.decoder.rounds} == {"decode", "decode_top_p", "decode_top_k"}
    generating = [rows for _, rows, time, prompted in model.decoder.rounds if time > 1 and not prompted]
    assert max(generating) <= MAX_ROWS
    await until_free(model)


async def test_a_parked_stream_is_in_no_round(model):
    async with live_stream(model, spec(0)) as unread:
        await unread.next_piece()
        while model.engine.parked() == 0:
            await asyncio.sleep(0.01)
        model.decoder.rounds.clear()
        await text_of(model, spec(2000))
        assert max(rows for _, rows, _, _ in model.decoder.rounds) == 1
    await until_free(model)


async def test_paced_streams_do_not_ride_in_long_rounds(model):
    """60 rows that take a step now and then would take most of the speed of the one unpaced stream."""

    async def read(wanted):
        async with live_stream(model, wanted) as stream:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)

    paced = [replace(spec(0, seed=seed), chars_per_second=40.0) for seed in range(60)]
    tasks = [asyncio.create_task(read(wanted)) for wanted in (*paced, spec(0))]
    await asyncio.sleep(0.5)
    model.decoder.rounds.clear()
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    long = [rows for _, rows, time, _ in model.decoder.rounds if time > 20]
    short = [rows for _, rows, time, _ in model.decoder.rounds if time < 5]
    assert np.mean(long) < 5
    assert max(short) > 5  # streams that are due share a round
    await until_free(model)


async def test_replays_are_short_however_long_a_stop_is(model):
    """All of the text may begin a stop, which never comes: 3,000 characters are always held back."""
    a = model.bundle.vocabulary.id_of("a")
    wanted = replace(spec(8000, temperature=0, logit_bias={a: 1e9}), stops=("a" * 3000 + "b",), resume_every=100)
    assert await text_of(model, wanted) == "a" * 8000
    replays = [time for _, _, time, forced in model.decoder.rounds if forced and time > 1]
    assert len(replays) > 10
    assert max(replays) < 1200
    await until_free(model)


async def test_readers_are_notified_less_often_while_calls_wait(tiny):
    class Slow(Decoder):
        def run(self, *arguments):
            time.sleep(0.004)
            return super().run(*arguments)

    model = Model(tiny, Slow(tiny, CPU), 1, 1, 0.010)
    try:
        async with live_stream(model, spec(0)) as stream:
            waiting = asyncio.create_task(text_of(model, spec(1)))
            while not model.slots.waiting:
                await asyncio.sleep(0)
            messages, begun = 0, time.monotonic()
            while time.monotonic() < begun + 0.7:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                messages += 1
            seconds = time.monotonic() - begun
        # However slow the machine is, no message comes sooner; the first character and the first turn began before.
        assert messages <= seconds / (engine_module.CROWDED_TURNS * schedule.TURN_SECONDS) + 3
        assert len(await waiting) == 1
    finally:
        model.engine.stop()


async def test_many_readers_are_notified_in_several_iterations_of_the_event_loop(model):
    """Other calls make progress in between."""
    notified = []
    readers = [SimpleNamespace(notify_reader=partial(notified.append, number)) for number in range(3 * READERS_AT_ONCE)]
    model._deliver(Delivery((), list, {}, readers=readers[:-2]))
    for iteration in range(1, 4):
        assert len(notified) == (iteration - 1) * READERS_AT_ONCE
        await asyncio.sleep(0)
        if iteration == 1:
            model._deliver(Delivery((), list, {}, readers=readers[-2:]))
    assert notified == list(range(3 * READERS_AT_ONCE))


async def test_an_idle_engine_sleeps(model):
    await text_of(model, spec(10))
    await until_free(model)
    model.decoder.rounds.clear()
    before = threading.active_count()
    await asyncio.sleep(0.2)
    assert model.decoder.rounds == []
    assert threading.active_count() == before


async def test_leaving_in_any_state_frees_the_slot(model):
    """Before the first round, in the middle, complete and unread: 300 slots, 1,500 streams."""
    for _ in range(5):
        for wait in (False, True):
            async with asyncio.TaskGroup() as group:
                for seed in range(150):
                    group.create_task(_leave(model, seed, wait))
    await until_free(model)


async def _leave(model, seed, wait):
    async with live_stream(model, spec(seed % 3 * 10, seed=seed)) as stream:
        if wait:
            await stream.next_piece()


async def test_fixed_batch_sizes_change_no_text(tiny, model):
    """As on a GPU: rows that take no step fill up every round."""
    decoder = RecordingDecoder(tiny, CPU, batch_sizes=(4, 16))
    padded = Model(tiny, decoder, 40, 40, 0.010)
    wanted = [spec(120, prompt=1 + seed % 3, seed=seed, **({"top_p": 0.9} if seed % 2 else {})) for seed in range(40)]
    try:
        texts = await asyncio.gather(*(text_of(padded, each) for each in wanted))
    finally:
        padded.engine.stop()
    assert {rows for _, rows, *_ in decoder.rounds} <= {4, 16, 32, 48}
    assert texts == [await text_of(model, each) for each in wanted]


async def test_readers_are_notified_now_and_then_and_not_after_each_round(model, monkeypatch):
    """Four endless streams: a message has the text of several rounds, and comes long before the buffer is full."""
    monkeypatch.setattr(schedule, "TURN_SECONDS", 0.06)  # a dozen rounds, or two where the machine is very busy
    characters = []

    async def read(wanted):
        async with live_stream(model, wanted) as stream:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                characters.append(len(piece.text))

    tasks = [asyncio.create_task(read(spec(0, seed=seed))) for seed in range(4)]
    while len(characters) < 40:
        await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    long = [time for _, _, time, prompted in model.decoder.rounds if not prompted and time > 1]
    assert 1.5 * np.median(long) < np.median(characters) < BUFFER / 2
    await until_free(model)
