"""The choice between one thread and all."""

import time

import pytest
import torch

from rill.train.loop.cpu import TRIAL_EVERY, TRIAL_STEPS, FasterThreads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_number_of_threads_is_found_and_found_again(faster):
    threads = FasterThreads()

    def steps(count, slow):
        used = []
        for _ in range(count):
            with threads.step():
                used.append(torch.get_num_threads())
                if len(used) <= 2 * TRIAL_STEPS and used[-1] == slow:
                    time.sleep(0.005)
        return used

    for fast in (faster, 3 - faster):
        used = steps(TRIAL_EVERY, slow=3 - fast)
        assert used[: 2 * TRIAL_STEPS] == [1] * TRIAL_STEPS + [2] * TRIAL_STEPS
        assert set(used[2 * TRIAL_STEPS :]) == {fast}


@pytest.mark.usefixtures("two_threads")
def test_evaluations_between_the_steps_of_a_trial_do_not_use_slow_threads():
    threads = FasterThreads()
    for _ in range(2 * TRIAL_STEPS):
        assert torch.get_num_threads() == 1
        with threads.step():
            if torch.get_num_threads() == 2:
                time.sleep(0.005)
    assert torch.get_num_threads() == 1
