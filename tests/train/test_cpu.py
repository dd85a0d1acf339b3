"""The choice of a number of threads, by a clock that the tests set."""

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rill.train.loop.cpu import FasterThreads


@pytest.fixture(autouse=True, scope="module")
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """Takes steps whose seconds depend on the number of threads; `cores` and `seconds` may change at any time."""

    def __init__(self, seconds: dict[int, float], most: int | None = None) -> None:
        self.now, self.seconds, self.cores = 0.0, seconds, max(seconds)
        torch.set_num_threads(most or max(seconds))
        self.threads = FasterThreads(cores=lambda: self.cores, clock=lambda: self.now)

    def run(self, seconds: float) -> list[int]:
        """Take steps for that long; return the threads of each."""
        used, end = [], self.now + seconds
        while self.now < end:
            with self.threads.step():
                used.append(torch.get_num_threads())
                self.now += self.seconds[used[-1]]
        return used


@pytest.mark.parametrize(("one", "two"), [(0.03, 0.02), (0.03, 0.3), (0.03, 0.031)])
def test_the_faster_number_is_found_and_another_is_tried_now_and_then(one: float, two: float) -> None:
    machine = Machine({1: one, 2: two})
    faster = 2 if two < one else 1
    machine.run(1)
    used = machine.run(30)
    assert 0.8 * len(used) < used.count(faster) < len(used)
    lost = used.count(3 - faster) * machine.seconds[3 - faster]
    assert lost < 0.06 * 30


@pytest.mark.parametrize("busy", [{1: 0.06, 2: 0.2}, {1: 0.06, 2: 2.5}])
def test_a_change_of_load_is_followed_within_seconds(busy: dict[int, float]) -> None:
    quiet = {1: 0.03, 2: 0.02}
    machine = Machine(quiet)
    assert machine.run(3)[-1] == 2
    for load, best in ((busy, 1), (quiet, 2), (busy, 1)):
        machine.seconds = load
        machine.run(3 + 5 * load[2])  # a few steps at the old number, and what notices the change
        assert machine.run(1)[-1] == best


def test_many_cores_are_climbed_step_by_step() -> None:
    machine = Machine({1: 0.10, 2: 0.06, 4: 0.04, 8: 0.035, 16: 0.09, 24: 0.5})
    used = machine.run(4)
    assert used[-1] == 8
    assert 24 not in used


def test_slow_steps_are_tried_once_each() -> None:
    machine = Machine({1: 4.0, 2: 3.0})
    assert machine.run(40) == [1, *[2] * 12]
    machine = Machine({1: 4.0, 2: 30.0})
    assert machine.run(60) == [1, 2, *[1] * 7]


def test_cores_that_are_taken_away_are_not_used() -> None:
    machine = Machine({1: 0.03, 2: 0.02, 4: 0.015})
    assert machine.run(3)[-1] == 4
    machine.cores = 2
    machine.run(6)
    assert set(machine.run(10)) <= {1, 2}
    machine.cores = 1
    machine.run(6)
    assert set(machine.run(10)) == {1}


def test_between_steps_the_fastest_known_number_is_set() -> None:
    machine = Machine({1: 0.03, 2: 0.3})
    for _ in range(100):
        machine.run(0.01)
        assert torch.get_num_threads() == 1


@given(st.integers(0, 2**32), st.lists(st.floats(1e-4, 10), min_size=4, max_size=4))
def test_whatever_the_steps_take_all_numbers_are_possible_ones(seed: int, seconds: list[float]) -> None:
    noise = random.Random(seed)
    machine = Machine(dict(zip((1, 2, 4, 6), seconds, strict=True)))
    for _ in range(60):
        with machine.threads.step():
            machine.now += machine.seconds[torch.get_num_threads()] * noise.uniform(0.5, 3)
