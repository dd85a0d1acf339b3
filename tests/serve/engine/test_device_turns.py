"""Turns of several models on one device: by time, urgent rounds first, and no waiting for an engine that is away."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.serve.engine.device_turns import AHEAD_SECONDS, AWAY_SECONDS, CREDIT_SECONDS, DeviceTurns, TurnState

TICK = 0.0001  # seconds of the simulation
INACTIVE = (TurnState.IDLE, TurnState.BETWEEN)


@dataclass
class Engine:
    """Rounds of `length` seconds with `gap` between them, from `begins` on; with `pause`, idle for so long instead."""

    length: float
    gap: float = 0.0003
    begins: float = 0.0
    pause: float = 0.0
    urgent: bool = False
    rounds: int = 10**9
    waits: list = field(default_factory=list)  # seconds before each round
    got: Counter = field(default_factory=Counter)  # seconds of rounds, by tenth of a second


def simulate(engines, seconds, capacity=1):
    """Run engines on one device by a simulated clock; `got` and `waits` have the results."""
    now = [0.0]
    turns = DeviceTurns(capacity, lambda: now[0])
    participants = [turns.join() for _ in engines]
    next_at = [engine.begins for engine in engines]  # when each begins its next round
    asked = [0.0] * len(engines)
    for tick in range(int(seconds / TICK)):
        now[0] = tick * TICK
        with turns.lock:
            for at, (engine, participant) in enumerate(zip(engines, participants, strict=True)):
                if participant.state is TurnState.RUNNING and now[0] >= participant.since + engine.length:
                    engine.got[int(10 * now[0])] += now[0] - participant.since
                    engine.rounds -= 1
                    participant.release()
                    next_at[at] = now[0] + (engine.pause or engine.gap)
                    if engine.pause:
                        participant.state = TurnState.IDLE
                        turns.grant_turns()
                elif participant.state in INACTIVE and now[0] >= next_at[at] and engine.rounds:
                    asked[at] = now[0]
                    participant.request(engine.urgent)
            if tick % int(AWAY_SECONDS / TICK) == 0:
                turns.grant_turns()  # as waiting engines do
            running = [at for at, participant in enumerate(participants) if participant.state is TurnState.RUNNING]
            assert len(running) <= capacity
            for at in running:
                if participants[at].since == now[0]:
                    engines[at].waits.append(now[0] - asked[at])


def total(engine):
    return sum(engine.got.values())


@pytest.mark.parametrize(("one", "other"), [(0.010, 0.001), (0.001, 0.010), (0.010, 0.010), (0.040, 0.0005)])
def test_two_models_get_equal_time_however_long_their_rounds(one, other):
    engines = [Engine(one), Engine(other)]
    simulate(engines, 3)
    first, second = map(total, engines)
    assert abs(first - second) <= AHEAD_SECONDS + one + other


def test_three_models_get_equal_time():
    engines = [Engine(0.010), Engine(0.003), Engine(0.001)]
    simulate(engines, 3)
    assert max(map(total, engines)) - min(map(total, engines)) <= AHEAD_SECONDS + 0.020


def test_an_idle_model_costs_nothing():
    alone, beside, idle = Engine(0.005), Engine(0.005), Engine(0.005, rounds=0)
    simulate([alone], 1)
    simulate([beside, idle], 1)
    assert total(beside) == total(alone)
    assert max(beside.waits) == 0


def test_a_model_with_little_work_waits_for_one_round_at_most():
    busy, rare = Engine(0.010), Engine(0.001, pause=0.020)
    simulate([busy, rare], 3)
    assert max(rare.waits) <= 0.010 + TICK  # the round in progress
    assert total(busy) > 0.85 * 3


@pytest.mark.parametrize(("early", "late"), [(0.010, 0.001), (0.001, 0.010)])
def test_idle_time_earns_no_credit(early, late):
    engines = [Engine(early), Engine(late, begins=1.0)]
    simulate(engines, 2)
    since = [sum(seconds for tenth, seconds in engine.got.items() if tenth >= 10) for engine in engines]
    assert abs(since[0] - since[1]) <= AHEAD_SECONDS + CREDIT_SECONDS + 0.020


@pytest.mark.parametrize("is_new", [True, False])
def test_time_used_alone_is_no_debt(is_new):
    now = [0.0]
    turns = DeviceTurns(1, lambda: now[0])
    old = turns.join()
    other = None if is_new else turns.join()

    def alone(participant, seconds):
        with turns.lock:
            participant.request()
            now[0] += seconds
            participant.release()

    alone(old, 100)
    old.idle()
    other = other or turns.join()
    alone(other, 1)
    with turns.lock:
        old.request()
        other.request()
    assert abs(old.seconds_used - other.seconds_used) <= 1.01 * CREDIT_SECONDS


def test_an_urgent_round_waits_for_one_round_at_most():
    busy, other = Engine(0.010), Engine(0.010)
    urgent = Engine(0.001, begins=0.0123, pause=0.0137, urgent=True)
    simulate([busy, other, urgent], 3)
    assert len(urgent.waits) > 100
    assert max(urgent.waits) <= 0.010 + TICK


def test_urgent_rounds_count_like_others():
    """A model with many urgent rounds gets fewer others."""
    now = [0.0]
    turns = DeviceTurns(1, lambda: now[0])
    hasty, patient = turns.join(), turns.join()
    with turns.lock:
        hasty.request(urgent=True)
        patient.request()
        now[0] = 0.030
        hasty.release()
        assert patient.state is TurnState.RUNNING
        hasty.request()
        now[0] = 0.035
        patient.release()
        assert hasty.state is TurnState.WAITING  # capacity is kept for the other
        patient.request()
        assert patient.state is TurnState.RUNNING
        now[0] = 0.055
        patient.release()
        assert hasty.state is TurnState.RUNNING


def test_an_engine_that_stays_away_keeps_its_turn_for_a_moment_only():
    busy, stuck = Engine(0.010), Engine(0.001, gap=0.5)
    simulate([busy, stuck], 3)
    assert max(busy.waits) <= 2 * AWAY_SECONDS + 0.001 + TICK
    assert total(busy) > 0.9 * 3


def test_with_capacity_for_all_no_engine_waits():
    engines = [Engine(0.010), Engine(0.001), Engine(0.004)]
    simulate(engines, 1, capacity=3)
    assert max(max(engine.waits) for engine in engines) == 0


def test_no_engine_waits_for_one_that_has_closed():
    now = [0.0]
    turns = DeviceTurns(1, lambda: now[0])
    behind, ahead = turns.join(), turns.join()
    with turns.lock:
        ahead.request()
        now[0] = 1.0
        behind.request()
        ahead.release()
        behind.release()
        ahead.request()
        assert ahead.state is TurnState.WAITING  # for the other's next round
    behind.close()
    assert ahead.state is TurnState.RUNNING


ENGINES = st.builds(
    Engine,
    length=st.floats(0.0005, 0.03),
    gap=st.floats(0, 0.01),
    begins=st.floats(0, 0.1),
    pause=st.sampled_from([0.0, 0.0, 0.01]),
    urgent=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ENGINES, min_size=1, max_size=4), st.integers(1, 3))
def test_capacity_is_never_exceeded_and_no_engine_starves(engines, capacity):
    """Without urgent rounds, every engine gets its turns."""
    simulate(engines, 1, capacity)
    if not any(engine.urgent for engine in engines):
        assert all(len(engine.waits) >= 2 for engine in engines)


def test_as_many_threads_run_as_there_is_capacity_for():
    turns, inside, most, rounds = DeviceTurns(2), [0], [0], Counter()
    lock, stop = threading.Lock(), threading.Event()

    def work(name):
        participant = turns.join()
        while not stop.is_set():
            with participant.turn(urgent=name == 0):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                with lock:
                    inside[0] -= 1
            rounds[name] += 1
        participant.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    while min(rounds[name] for name in range(5)) < 20:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert most[0] == 2
    assert turns.participants == []


def test_a_round_that_fails_releases_its_turn():
    turns = DeviceTurns()
    failing, other = turns.join(), turns.join()
    with pytest.raises(RuntimeError), failing.turn():
        raise RuntimeError("out of memory")
    with other.turn():
        assert other.state is TurnState.RUNNING
    assert other.state is TurnState.BETWEEN
