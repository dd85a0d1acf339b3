"""Which rows are in which round: the scheduler alone, with simulated times of steps."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.sampling import Sampling
from rill.serve.engine.rows import PLAIN, Round, Rows
from rill.serve.engine.scheduler import (
    NEWCOMER_SECONDS,
    SHORT_PROMPT_SECONDS,
    TURN_SECONDS,
    TURN_STEPS,
    Scheduler,
    _companions,
    _least_waste,
)
from rill.serve.engine.text_codec import GivenText
from rill.serve.engine.types import StreamSpec

MAX_ROWS, ROUND_SECONDS, STEP = 4, 0.010, 0.0005  # a step takes as long however many rows there are
PLAIN_SAMPLING, FILTERED = Sampling(), Sampling(top_k=3)


class Machine:
    """Rows and a scheduler; every reader reads immediately."""

    def __init__(self, slots=64, step=STEP):
        self.rows = Rows(slots, 5)
        self.scheduler = Scheduler(self.rows, SimpleNamespace(max_rows=MAX_ROWS, padding=lambda rows: 0), ROUND_SECONDS)
        self.scheduler.times.step = lambda batch, kind=PLAIN: step
        self.now, self.step, self.specs, self.is_crowded = 100.0, step, {}, False

    def enter(self, slot, count=0, prompt=1, pace=0.0, sampling=PLAIN_SAMPLING):
        spec = StreamSpec(np.zeros(prompt, np.int64), prompt, sampling, 0, count, pace)
        self.rows.read[slot] = 0
        self.rows.enter(slot, spec, self.now)
        self.specs[slot] = spec

    def plan(self):
        """The next round, not run."""
        self.rows.settle()
        return self.scheduler.plan(self.now, self.is_crowded)

    def round(self) -> Round | None:
        """The next round, run."""
        r = self.plan()
        if r:
            self.now += r.time * self.step
            self.scheduler.record(r, r.time * self.step)
            self.rows.advance(r, np.zeros((r.time, len(r.slots)), np.int64))
            self.rows.read[r.slots] = self.rows.table["generated"][r.slots]
            for slot in r.slots.tolist():
                if self.rows.is_complete(slot):
                    self.rows.leave(slot)
                    del self.specs[slot]
        return r

    def rounds(self, count):
        return [self.round() for _ in range(count)]


def slots_of(rounds):
    return [sorted(r.slots.tolist()) for r in rounds]


def test_a_newcomer_has_a_round_between_two_rounds_of_a_turn():
    machine = Machine()
    machine.enter(0)
    machine.enter(1)
    machine.rounds(2)  # the first characters, and a round of the turn
    machine.enter(2, prompt=6)
    newcomer, after = machine.rounds(2)
    assert newcomer.newcomers
    assert (newcomer.slots.tolist(), newcomer.time) == ([2], 6)
    assert sorted(after.slots.tolist()) == [0, 1, 2]  # the turn has capacity for it
    assert not after.newcomers


def test_a_turn_keeps_its_rows_until_its_time_is_over():
    machine = Machine()
    for slot in range(2 * MAX_ROWS):
        machine.enter(slot)
    assert machine.round().newcomers  # all of them: plain newcomers may be many
    rounds = machine.rounds(12)
    assert {r.time * STEP for r in rounds} == {ROUND_SECONDS}
    assert 3 * ROUND_SECONDS > TURN_SECONDS > 2 * ROUND_SECONDS
    assert slots_of(rounds) == ([[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3) * 2


def test_a_turn_has_several_characters_even_if_a_step_takes_long():
    machine = Machine(step=0.008)
    for slot in range(2 * MAX_ROWS):
        machine.enter(slot)
    rounds = machine.rounds(2 * TURN_STEPS + 1)[1:]
    assert slots_of(rounds) == [[0, 1, 2, 3]] * TURN_STEPS + [[4, 5, 6, 7]] * TURN_STEPS
    assert all(r.time == 1 for r in rounds)
    assert machine.scheduler.turn_seconds == TURN_STEPS * machine.step


def test_few_rows_have_short_rounds_unless_one_is_alone():
    machine, seconds = Machine(), []
    for slot in range(4):
        machine.enter(slot)
        seconds.append(machine.rounds(2)[1].time * STEP)
    assert seconds == [ROUND_SECONDS, ROUND_SECONDS / 2, ROUND_SECONDS, ROUND_SECONDS]


def test_newcomers_take_no_more_time_than_the_others():
    """An endless sequence of them, each with a prompt as long as a round."""
    machine = Machine()
    machine.enter(0)
    machine.round()
    times = {True: 0.0, False: 0.0}
    for _ in range(300):
        if 1 not in machine.specs:
            machine.enter(1, count=1, prompt=20)
        r = machine.round()
        times[r.newcomers] += r.time * STEP
    assert times[True] <= times[False] + NEWCOMER_SECONDS + ROUND_SECONDS
    assert times[True] > 0.3 * times[False]


def test_newcomers_have_no_rounds_of_their_own_while_calls_wait_for_a_slot():
    """A newcomer in the slot of a stream that has ended takes its part in the turn."""
    machine = Machine()
    machine.enter(0, count=30)  # it ends in the second of three rounds
    for slot in range(1, 2 * MAX_ROWS):
        machine.enter(slot)
    machine.is_crowded = True
    while 0 in machine.specs:
        turn = machine.round()
        assert not turn.newcomers
    machine.enter(0, prompt=6)
    r = machine.round()
    assert not r.newcomers
    assert slots_of([r]) == slots_of([turn])
    assert machine.rows.table["generated"][0] > 0


def test_a_long_prompt_takes_turns():
    machine = Machine()
    machine.enter(0)
    machine.round()
    machine.enter(1, prompt=10 * int(SHORT_PROMPT_SECONDS / STEP))
    assert not any(r.newcomers for r in machine.rounds(4))


def test_newcomers_with_similar_prompts_share_a_round():
    machine = Machine()
    for slot, prompt in enumerate([1, 19, 2, 20, 1]):
        machine.enter(slot, prompt=prompt)
    first, second = machine.rounds(2)
    assert sorted([slots_of([first])[0], slots_of([second])[0]]) == [[0, 2, 4], [1, 3]]
    assert first.newcomers
    assert second.newcomers


def test_some_of_many_prompts_are_finished_before_all_are_begun():
    machine = Machine()
    for slot in range(3 * MAX_ROWS):
        machine.enter(slot, prompt=30)
    machine.rounds(2)
    left = machine.rows.table["prompt_left"][: 3 * MAX_ROWS]
    assert sorted(left.tolist()) == [0] * MAX_ROWS + [29] * 2 * MAX_ROWS


def test_a_round_has_rows_of_one_kind_and_both_kinds_advance():
    machine = Machine()
    for slot in range(4):
        machine.enter(slot, sampling=FILTERED if slot % 2 else PLAIN_SAMPLING)
    rounds = machine.rounds(30)
    assert {tuple(slots) for slots in slots_of(rounds)} == {(0, 2), (1, 3)}
    made = machine.rows.table["generated"][:4]
    assert made.max() < 1.5 * made.min()


def test_a_stream_that_cannot_advance_is_in_no_round():
    machine = Machine()
    assert machine.plan() is None
    machine.enter(0, pace=10.0)
    assert [r and r.time for r in machine.rounds(2)] == [1, None]
    machine.now += 0.1
    assert machine.round().time == 1


def test_rows_that_can_go_about_as_far_share_a_round():
    rows = np.arange(6)
    even, mixed = np.array([30, 30, 29, 3, 30, 30]), np.array([30, 1, 1, 2, 1, 1])
    assert _companions(rows, even, 3).tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]  # one wasted row is cheaper than its own round
    assert _companions(rows, mixed, 0).tolist() == [0]
    assert _companions(rows, mixed, 3).tolist() == [1, 2, 3, 4, 5]
    assert _companions(rows[1:], mixed, 2).tolist() == [1, 2, 3, 4, 5]


streams = st.builds(
    dict,
    at=st.integers(0, 30),  # the number of the round before which it joins
    count=st.integers(1, 300),
    prompt=st.integers(1, 120),
    pace=st.sampled_from([0.0, 0.0, 50.0, 3000.0]),
    sampling=st.sampled_from([Sampling(), Sampling(), Sampling(top_p=0.5), FILTERED]),
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(streams, min_size=1, max_size=20), st.sampled_from([0.0001, STEP, 0.003, 0.02]), st.data())
def test_every_stream_gets_all_its_characters(coming, step, data):
    machine = Machine(step=step)
    crowded = data.draw(st.lists(st.booleans(), min_size=1, max_size=30), "crowded")
    done = rounds = 0
    waiting = dict(enumerate(sorted(coming, key=lambda stream: stream["at"])))
    while waiting or machine.specs:
        for slot in [slot for slot, stream in waiting.items() if stream["at"] <= rounds]:
            stream = waiting.pop(slot)
            machine.enter(slot, **{name: value for name, value in stream.items() if name != "at"})
        before = machine.rows.table["generated"].copy()
        machine.is_crowded = crowded[rounds % len(crowded)]
        r = machine.round()
        rounds += 1
        if r is None:
            machine.now += 0.02  # a pace may be what they wait for
            assert rounds < 20_000
            continue
        done += 1
        assert (r.steps >= 1).all()
        assert (r.prompted <= r.steps).all()
        assert len(r.slots) <= MAX_ROWS or (r.newcomers and r.kind == PLAIN)
        assert len(set(machine.rows.table["kind"][r.slots].tolist())) == 1
        assert (machine.rows.table["generated"][r.slots] - before[r.slots] == r.steps - r.prompted).all()
        assert (machine.rows.table["generated"][r.slots] <= machine.rows.table["limit"][r.slots]).all()
        assert done < 5000  # 20 streams of 420 steps, one at a time, in rounds of a step or two
    assert (machine.rows.table["generated"][: len(coming)] == machine.rows.table["limit"][: len(coming)]).all()


@pytest.mark.parametrize("is_crowded", [False, True])
@pytest.mark.parametrize("others", [1, 3, 30])
def test_a_stream_waits_for_about_one_turn_of_each_of_the_others(others, is_crowded):
    """While newcomers come and go, a stream waits for twice the time of the turns before its own, at most."""
    machine, chance = Machine(), np.random.default_rng(others)
    machine.is_crowded = is_crowded
    for slot in range(others):
        machine.enter(slot)
    last, longest = np.full(64, machine.now), 0.0
    for _ in range(600):
        if chance.random() < 0.3 and 63 not in machine.specs:
            machine.enter(63, count=1, prompt=int(chance.integers(1, 20)))
        r = machine.round()
        old = [slot for slot in r.slots.tolist() if slot < others]
        longest = max([longest, *(machine.now - last[slot] for slot in old)])
        last[old] = machine.now
    turns = -(-others // MAX_ROWS)
    assert longest <= 2 * turns * (TURN_SECONDS + ROUND_SECONDS) + NEWCOMER_SECONDS


def totals_spec(count):
    given = GivenText("", None, whole=np.zeros(count, np.int64))
    return StreamSpec(np.zeros(1, np.int64), 0, PLAIN_SAMPLING, 0, count, logprobs=0, given=given, only_total=True)


def test_texts_without_readers_are_not_newcomers_and_are_never_parked():
    machine = Machine()
    machine.rows.enter(0, totals_spec(100_000), machine.now)
    assert not machine.rows.starting
    machine.enter(1)
    rounds = machine.rounds(4000)
    assert slots_of(rounds[:2]) == [[1], [0]]
    assert rounds[0].newcomers
    assert not rounds[1].newcomers
    assert {tuple(slots) for slots in slots_of(rounds)} == {(0,), (1,)}  # a kind of its own
    assert machine.rows.table["generated"][0] >= 20_000  # its reader has taken nothing


@given(left=st.lists(st.integers(1, 300), min_size=1, max_size=64), most=st.integers(1, 50))
def test_a_round_without_readers_wastes_little(left, most):
    steps = _least_waste(np.array(left), most)
    assert 1 <= steps <= most
    assert steps == most or steps in left
    value = [sum(min(each, at) for each in left) / (at + 1) for at in range(1, most + 1)]
    assert value[steps - 1] == pytest.approx(max(value))
