"""sampler.js chooses as rill.sampling does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from node import drawn, modules, run_node

from rill.sampling import Sampling, choose

NEAR = 3e-6  # exponentials may differ in their last bit

LOGITS = st.one_of(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=60),
    st.lists(st.sampled_from([0.0, 1.0, 1.5, -3.0]), min_size=2, max_size=30),  # ties
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=2, max_size=5),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.sampled_from([0.0, 1.0, 1e-40, 1e-320]), st.floats(0.01, 50)),
    top_k=st.one_of(st.sampled_from([0, 0, 1, 1000, 2**60]), st.integers(0, 20)),
    top_p=st.one_of(st.sampled_from([1.0, 1.0, 0.5, 1e-30]), st.floats(0.001, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 0.0, 1.0]), st.floats(0, 1)),
)
UNIFORMS = st.one_of(st.sampled_from([0.0, 1 - 2**-24]), st.floats(0, 1 - 2**-24, width=32))

PROGRAM = """
import { choose } from "./standalone/sampler.js";
const never = (unknown) => (unknown === null ? [] : [unknown]);
report(data.map(({ logits, u, sampling, unknown }) => choose(Float32Array.from(logits), u, sampling, never(unknown))));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return modules(tmp_path_factory.mktemp("node"))


def as_json(logits, u, sampling, unknown):
    names = {"temperature": "temperature", "top_k": "topK", "top_p": "topP", "min_p": "minP"}
    values = {name: getattr(sampling, key) for key, name in names.items()}
    values["banned"] = list(sampling.logit_bias)
    return {"logits": logits, "u": u, "sampling": values, "unknown": unknown}


def possible(logits, u, sampling, unknown):
    """What may be chosen where rounding decides: u, top-p and min-p a little smaller or larger."""
    row = np.array(logits, np.float32)
    near = [(u, sampling)]
    for sign in (-1, 1):
        moved = 1 + sign * NEAR
        near.append((min(max(u + sign * NEAR, 0), 1 - 2**-24), sampling))
        near.append((u, replace(sampling, top_p=min(sampling.top_p * moved, 1.0))))
        near.append((u, replace(sampling, min_p=min(sampling.min_p * moved, 1.0))))
    return {choose(row, np.float32(at), how, () if unknown is None else (unknown,)) for at, how in near}


def test_choices_are_those_of_the_reference(folder):
    strategy = st.tuples(LOGITS, UNIFORMS, SAMPLINGS, st.sampled_from([None, None, 0, 1]))
    both = st.builds(Sampling, top_k=st.integers(2, 6), top_p=st.floats(0.3, 0.95), min_p=st.sampled_from([0.0, 0.1]))
    many = st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=30)
    bans = st.builds(Sampling, logit_bias=st.dictionaries(st.integers(0, 6), st.just(-np.inf)), top_k=st.integers(0, 3))
    cases = drawn(strategy, 120)
    for samplings in (both, bans):
        cases += drawn(st.tuples(many, UNIFORMS, samplings, st.sampled_from([None, 3])), 40)
    # The reference divides by a temperature that float32 rounds to 0; the graph and the page do not.
    cases = [case for case in cases if case[2].temperature == 0 or np.float32(case[2].temperature) > 2.0**-126]
    found = run_node(folder, PROGRAM, [as_json(*case) for case in cases])
    decided = 0
    for case, chosen in zip(cases, found, strict=True):
        allowed = possible(*case)
        decided += len(allowed) == 1
        assert chosen in allowed, case
    assert decided > 0.9 * len(cases)


def test_temperatures_below_float32_are_greedy(folder):
    cases = [as_json([0.0, 2.0, 2.0, 1.0], 0.9, Sampling(temperature=value), None) for value in (0.0, 1e-46, 1e-320)]
    greedy, *others = run_node(folder, PROGRAM, cases)
    assert greedy == 1  # the first of the largest
    assert set(others) <= {1, 2}


def test_log_probabilities_and_alternatives(folder):
    program = """
    import { logProbabilities, mostProbable } from "./standalone/sampler.js";
    report(data.map(({ logits, count, unknown }) => {
      const logprobs = logProbabilities(Float32Array.from(logits));
      return [Array.from(logprobs), mostProbable(logprobs, count, unknown === null ? [] : [unknown])];
    }));
    """
    strategy = st.tuples(
        st.lists(st.sampled_from([0.0, 1.0, 1.5, -3.0, 2.25]), min_size=1, max_size=40),
        st.integers(1, 10),
        st.sampled_from([None, 0]),
    )
    cases = drawn(strategy, 100)
    found = run_node(folder, program, [dict(zip(("logits", "count", "unknown"), case, strict=True)) for case in cases])
    for (logits, count, unknown), (logprobs, ids) in zip(cases, found, strict=True):
        row = np.array(logits)
        wanted = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert np.allclose(logprobs, wanted, atol=1e-6)
        order = [int(index) for index in np.argsort(-row, kind="stable") if index != unknown]
        assert ids == order[:count]
