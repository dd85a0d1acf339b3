"""Turns of several models on one device: by time, first characters at once, and nobody waits for who does not come."""

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
    """Engines on one device, by a clock of its own; what they got is in them."""
    now = [0.0]
    turns = DeviceTurns(capacity, lambda: now[0])
    participants = [turns.join() for _ in engines]
    next_at = [engine.begins for engine in engines]  # when it does what follows
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
                turns.grant_turns()  # as those who wait do
            running = [at for at, participant in enumerate(participants) if participant.state is TurnState.RUNNING]
            assert len(running) <= capacity
            for at in running:
                if participants[at].since == now[0]:
                    engines[at].waits.append(now[0] - asked[at])


def total(engine):
    return sum(engine.got.values())


@pytest.mark.parametrize(("one", "other"), [(0.010, 0.001), (0.001, 0.010), (0.010, 0.010), (0.040, 0.0005)])
def test_half_of_the_time_each_however_long_their_rounds(one, other):
    engines = [Engine(one), Engine(other)]
    simulate(engines, 3)
    first, second = map(total, engines)
    assert abs(first - second) <= AHEAD_SECONDS + one + other


def test_three_models():
    engines = [Engine(0.010), Engine(0.003), Engine(0.001)]
    simulate(engines, 3)
    assert max(map(total, engines)) - min(map(total, engines)) <= AHEAD_SECONDS + 0.020


def test_an_idle_model_costs_nothing():
    alone, beside, idle = Engine(0.005), Engine(0.005), Engine(0.005, rounds=0)
    simulate([alone], 1)
    simulate([beside, idle], 1)
    assert total(beside) == total(alone)
    assert max(beside.waits) == 0


def test_who_wants_little_gets_it_and_the_other_has_the_rest():
    busy, rare = Engine(0.010), Engine(0.001, pause=0.020)
    simulate([busy, rare], 3)
    assert max(rare.waits) <= 0.010 + TICK  # the round in progress
    assert total(busy) > 0.85 * 3


@pytest.mark.parametrize(("early", "late"), [(0.010, 0.001), (0.001, 0.010)])
def test_time_that_was_not_wanted_is_not_saved(early, late):
    engines = [Engine(early), Engine(late, begins=1.0)]
    simulate(engines, 2)
    since = [sum(seconds for tenth, seconds in engine.got.items() if tenth >= 10) for engine in engines]
    assert abs(since[0] - since[1]) <= AHEAD_SECONDS + CREDIT_SECONDS + 0.020


@pytest.mark.parametrize("is_new", [True, False])
def test_who_had_all_the_time_alone_has_no_debt(is_new):
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


def test_urgent_rounds_count():
    """The model that had many has the less of the others."""
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
        assert hasty.state is TurnState.WAITING  # the place is kept
        patient.request()
        assert patient.state is TurnState.RUNNING
        now[0] = 0.055
        patient.release()
        assert hasty.state is TurnState.RUNNING


def test_nobody_waits_long_for_who_does_not_come():
    """An engine that is between two rounds for long, whatever it does, keeps its place for a moment only."""
    busy, stuck = Engine(0.010), Engine(0.001, gap=0.5)
    simulate([busy, stuck], 3)
    assert max(busy.waits) <= 2 * AWAY_SECONDS + 0.001 + TICK
    assert total(busy) > 0.9 * 3


def test_with_places_for_all_nobody_waits():
    engines = [Engine(0.010), Engine(0.001), Engine(0.004)]
    simulate(engines, 1, capacity=3)
    assert max(max(engine.waits) for engine in engines) == 0


def test_a_lane_that_is_closed_keeps_nobody():
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
def test_the_places_are_never_too_many_and_nobody_starves(engines, capacity):
    """Whatever they are, who is not hurried by others gets on."""
    simulate(engines, 1, capacity)
    if not any(engine.urgent for engine in engines):
        assert all(len(engine.waits) >= 2 for engine in engines)


def test_threads_exclude_one_another():
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


def test_a_round_that_fails_gives_its_place_back():
    turns = DeviceTurns()
    failing, other = turns.join(), turns.join()
    with pytest.raises(RuntimeError), failing.turn():
        raise RuntimeError("out of memory")
    with other.turn():
        assert other.state is TurnState.RUNNING
    assert other.state is TurnState.BETWEEN
