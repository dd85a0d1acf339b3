"""Fuzzing in small: thousands of what `make fuzz` tries by the million, and a server among hostile clients."""

from random import Random

import pytest
from fuzz_live import ARGUMENTS, fuzz_server
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import run_server


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_has_a_documented_answer(name):
    target, random = TARGETS[name], Random(name)
    for _ in range(400):
        target.attempt(target.make(random))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random=st.randoms(use_true_random=False))
def test_no_input_can_be_found_that_has_none(name, random):
    """Hypothesis looks for one, and makes it small."""
    target = TARGETS[name]
    target.attempt(target.make(random))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.binary(max_size=200))
def test_any_bytes_have_a_documented_answer(name, data):
    TARGETS[name].attempt(data)


def test_a_server_lives_among_hostile_clients(tiny_folder):
    """Its streams have the same bits as without them, and it ends as if nothing had been."""
    with run_server(tiny_folder, *ARGUMENTS) as server:
        answers = fuzz_server(server, 600, Random(1))
    assert answers["valid streams"] >= 4
    assert {"Generate OK", "Score OK", "Interact OK", "ListModels OK", "unknown UNIMPLEMENTED"} <= answers.keys()
