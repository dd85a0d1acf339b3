"""The engine by itself, on a real graph: what a failing round does, and what rounds are made of."""

import asyncio
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from rill.sampling import Sampling
from rill.serve.engine import loop as engine_module
from rill.serve.engine import scheduler as schedule
from rill.serve.engine.decoder import MAX_ROWS, Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.rows import BUFFER, PLAIN, TOP_K, TOP_P, Rows, kind_of
from rill.serve.engine.states import States
from rill.serve.engine.stream import Delivery
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import DrainingError, EngineError, StartError, WaitingLineFullError
from rill.serve.models.model import READERS_AT_ONCE, Model
from rill.serve.models.slots import Slots
from rill.vocabulary import Vocabulary


class RecordingDecoder(Decoder):
    """A decoder that remembers its rounds, and fails when told to."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rounds, self.fail = [], False

    def run(self, variant, feeds, states):
        if self.fail:
            self.fail = False
            raise RuntimeError("out of memory")
        self.rounds.append(
            (variant, feeds["token"].size, feeds["uniforms"].shape[0], bool((feeds["forced"] >= 0).any()))
        )
        return super().run(variant, feeds, states)


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
    async with model.stream(wanted) as stream:
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


async def failing(model, notified):
    """What comes of a stream that fails after `notified` was called with its text: text, snapshot, error."""
    got, snapshot = "", None
    async with model.stream(spec(0)) as stream:
        try:
            while True:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                got, snapshot = got + piece.text, piece.snapshot
                if not snapshot:
                    notified(got)
        except EngineError as error:
            return got, snapshot, error


async def test_a_failing_round_fails_its_streams_and_no_others(model):
    """What was made before it is sent, with a snapshot from which the same text goes on."""
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
async def test_half_a_round_is_no_place_to_go_on_from(model, monkeypatch, stage):
    """What failed after the round may have taken over a part of it."""
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


async def test_an_engine_that_fails_for_good_says_so(tiny):
    """Each stream gets an answer, those that come later too."""
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
async def test_a_failure_outside_a_round_hangs_nobody(model, monkeypatch, broken):
    """Whatever breaks, a waiting call gets an answer, and the engine goes on."""
    right = getattr(engine_module.Engine, broken)
    failures = [RuntimeError("broken")]

    def fail_once(self, *arguments):
        if failures and self._streams:
            raise failures.pop()
        return right(self, *arguments)

    async with model.stream(spec(0)) as doomed:
        await doomed.next_piece()
        monkeypatch.setattr(engine_module.Engine, broken, fail_once)
        with pytest.raises(EngineError, match="broken"):
            await read_on(model, doomed)
    assert len(await text_of(model, spec(20))) == 20
    await until_free(model)


async def test_who_has_no_character_yet_goes_first_in_a_short_round(model):
    async with model.stream(spec(0)) as busy:
        await busy.next_piece()
        await asyncio.gather(*(text_of(model, spec(1, prompt=5, seed=seed)) for seed in range(20)))
    await until_free(model)
    # Those who come while such a round is running may find their characters in the long round after it.
    short = [rows for _, rows, time, prompted in model.decoder.rounds if prompted and time <= 5]
    assert max(short) > 1


@pytest.mark.parametrize("kind", [{}, {"top_k": 5}], ids=["plain", "filtered"])
async def test_newcomers_starve_neither_kind_of_stream(model, kind):
    """One stream of each kind, and newcomers of one kind without end."""

    async def newcomers():
        while True:
            await text_of(model, spec(1, **kind))

    async def read(stream):
        while True:
            piece, _ = await stream.next_piece()
            model.mark_sent(stream, piece.text)

    async with model.stream(spec(0)) as plain, model.stream(spec(0, top_k=3)) as filtered:
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
        """As if `stop` came just before the engine cleared its wake-up."""
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
    async with model.stream(spec(0)) as unread:
        await unread.next_piece()
        while model.engine.parked() == 0:
            await asyncio.sleep(0.01)
        model.decoder.rounds.clear()
        await text_of(model, spec(2000))
        assert max(rows for _, rows, _, _ in model.decoder.rounds) == 1
    await until_free(model)


async def test_paced_streams_do_not_ride_in_long_rounds(model):
    """60 rows that take a step now and then would cost the one that is read as fast as it comes most of its speed."""

    async def read(wanted):
        async with model.stream(wanted) as stream:
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
    assert max(short) > 5  # those who are due share a round
    await until_free(model)


async def test_what_is_replayed_is_bounded_however_long_a_stop_is(model):
    """All of the text may be the beginning of a stop, for ever: 3,000 characters are held back, and none of it ends."""
    a = model.bundle.vocabulary.id_of("a")
    wanted = replace(spec(8000, temperature=0, logit_bias={a: 1e9}), stops=("a" * 3000 + "b",), resume_every=100)
    assert await text_of(model, wanted) == "a" * 8000
    replays = [time for _, _, time, forced in model.decoder.rounds if forced and time > 1]
    assert len(replays) > 10
    assert max(replays) < 1200
    await until_free(model)


async def test_readers_are_told_less_often_where_calls_wait(tiny):
    class Slow(Decoder):
        def run(self, *arguments):
            time.sleep(0.004)
            return super().run(*arguments)

    model = Model(tiny, Slow(tiny, CPU), 1, 1, 0.010)
    try:
        async with model.stream(spec(0)) as stream:
            waiting = asyncio.create_task(text_of(model, spec(1)))
            while not model.slots.waiting:
                await asyncio.sleep(0)
            messages, begun = 0, time.monotonic()
            while time.monotonic() < begun + 0.7:
                piece, _ = await stream.next_piece()
                model.mark_sent(stream, piece.text)
                messages += 1
            seconds = time.monotonic() - begun
        # However slow this machine is, none comes sooner; the first character and the first turn had begun before.
        assert messages <= seconds / (engine_module.CROWDED_TURNS * schedule.TURN_SECONDS) + 3
        assert len(await waiting) == 1
    finally:
        model.engine.stop()


async def test_many_readers_are_told_in_several_iterations_of_the_event_loop(model):
    """In between, others get on: a call that comes, or one that is refused."""
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
    """Before the first round, in the middle, when complete and unread: 300 slots, 1,500 streams."""
    for _ in range(5):
        for wait in (False, True):
            async with asyncio.TaskGroup() as group:
                for seed in range(150):
                    group.create_task(_leave(model, seed, wait))
    await until_free(model)


async def _leave(model, seed, wait):
    async with model.stream(spec(seed % 3 * 10, seed=seed)) as stream:
        if wait:
            await stream.next_piece()


async def test_a_slot_given_in_the_moment_of_cancellation_is_not_lost():
    slots = Slots(1, 2)
    slot = await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release(slot)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.running == 0
    assert await slots.acquire() == slot


async def test_the_line_is_first_come_first_served_and_bounded():
    slots = Slots(1, 2)
    slot = await slots.acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(WaitingLineFullError):
        await slots.acquire()
    slots.release(slot)
    assert await waiting[0] == slot
    assert not waiting[1].done()
    slots.refuse_waiting(DrainingError("going away"))
    with pytest.raises(DrainingError):
        await waiting[1]


def test_paces_limits_and_readers_bound_what_is_made():
    rows = Rows(4, 3)
    rows.enter(0, StreamSpec(np.array([0]), 1, Sampling(), 0, 100, 0.0), now=10.0)
    rows.enter(1, StreamSpec(np.array([0]), 1, Sampling(), 0, 0, 5.0), now=10.0)
    rows.enter(2, StreamSpec(np.array([0]), 1, Sampling(), 0, 0, 0.0), now=10.0)
    rows.settle()
    rows.table["buffer"] = 1000
    assert rows.room(now=10.0).tolist() == [100, 1, 1000]
    rows.table["generated"][:3] = 100, 1, 990
    assert rows.room(now=10.0).tolist() == [0, 0, 10]
    assert rows.next_due(now=10.0) == pytest.approx(0.2)
    assert rows.room(now=11.0).tolist() == [0, 5, 10]
    rows.read[2] = 500
    assert rows.room(now=10.0).tolist() == [0, 0, 510]
    rows.leave(1)
    rows.settle()
    assert rows.room(now=10.0).tolist() == [0, 510]
    assert rows.next_due(now=10.0) == np.inf


async def test_fixed_batch_sizes_change_no_text(tiny, model):
    """What a GPU gets: rows that take no step fill every round up."""
    decoder = RecordingDecoder(tiny, CPU, batch_sizes=(4, 16))
    padded = Model(tiny, decoder, 40, 40, 0.010)
    wanted = [spec(120, prompt=1 + seed % 3, seed=seed, **({"top_p": 0.9} if seed % 2 else {})) for seed in range(40)]
    try:
        texts = await asyncio.gather(*(text_of(padded, each) for each in wanted))
    finally:
        padded.engine.stop()
    assert {rows for _, rows, *_ in decoder.rounds} <= {4, 16, 32, 48}
    assert texts == [await text_of(model, each) for each in wanted]


def test_a_kind_of_row_sorts_about_as_much_as_the_next():
    assert kind_of(Sampling(temperature=0)) == PLAIN
    assert kind_of(Sampling(top_p=0.9)) == kind_of(Sampling(min_p=0.1)) == kind_of(Sampling(logit_bias={0: 1})) == TOP_P
    assert kind_of(Sampling(top_k=1)) == kind_of(Sampling(top_k=64, top_p=0.5)) == TOP_K
    assert [kind_of(Sampling(top_k=k)) - TOP_K for k in (65, 128, 129, 4000)] == [1, 1, 2, 6]


def test_states_stay_on_the_device_while_the_rows_do():
    states = States(["state_h", "state_c"], (2, 5, 3), "cpu", 0)
    first = states.batch(np.array([1, 3]))
    assert first["state_h"].shape() == [2, 2, 3]

    def filled(value):
        return {
            name: ort.OrtValue.ortvalue_from_numpy(np.full((2, 2, 3), value + at, np.float32))
            for at, name in enumerate(first)
        }

    kept = filled(5)
    states.keep(np.array([1, 3]), kept)
    assert states.batch(np.array([1, 3])) is kept
    other = states.batch(np.array([0, 3]))  # another batch: the table is brought up to date
    assert other["state_h"].numpy()[0, :, 0].tolist() == [0, 5]
    assert other["state_c"].numpy()[0, :, 0].tolist() == [0, 6]
    states.keep(np.array([0, 3]), filled(7))
    states.begin(3, None)
    after = {name: value.numpy()[0, :, 0].tolist() for name, value in states.batch(np.array([0, 1, 3])).items()}
    assert after == {"state_h": [7, 5, 0], "state_c": [8, 6, 0]}


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: {"graphs": {**bundle.graphs, "decode": bundle.graphs["model"]}},
        lambda bundle: {"graphs": {**bundle.graphs, "decode_top_p": bundle.graphs["decode"][:-9]}},
        lambda bundle: {"graphs": {"model": bundle.graphs["model"], "decode": bundle.graphs["decode"]}},
        lambda bundle: {"vocabulary": Vocabulary(tuple(reversed(bundle.vocabulary.symbols)))},
        lambda bundle: {"vocabulary": Vocabulary(bundle.vocabulary.symbols[:-1])},
        lambda bundle: {"states": (("state_h", (2, "batch", 32)),)},
        lambda bundle: {"states": (*bundle.states, ("state_c", (1, "batch", 32)))},
        lambda bundle: {"states": ()},
    ],
)
def test_graphs_that_are_not_the_manifests_are_refused_at_load(tiny, change):
    with pytest.raises(StartError, match="bundle 'tiny'") as caught:
        Decoder(replace(tiny, **change(tiny)), CPU)
    assert "\n" not in str(caught.value)


async def test_readers_are_told_now_and_then_and_not_after_each_round(model, monkeypatch):
    """Four streams without end: a message has the text of several rounds, and comes long before the buffer is full."""
    monkeypatch.setattr(schedule, "TURN_SECONDS", 0.06)  # a dozen rounds, or two where the machine is very busy
    characters = []

    async def read(wanted):
        async with model.stream(wanted) as stream:
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
