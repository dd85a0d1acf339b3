"""Sampling in NumPy: the parameters, the uniforms, and the choice compared with its definition."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rill.sampling import Sampling, SamplingError, choose, uniforms, window_of

V = 11

# Few distinct values give ties; whole tenths keep the three away from one another's rounding.
LOGITS = st.lists(st.integers(-40, 40), min_size=V, max_size=V).map(lambda tenths: np.array(tenths, np.float32) / 10)
SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, V - 1, V, V + 5, 2**32 - 1]),
    top_p=st.sampled_from([0.013, 0.31, 0.77, 0.953, 1.0]),
    min_p=st.sampled_from([0.0, 0.0171, 0.313, 1.0]),
)


@settings(max_examples=300, deadline=None)
@given(logits=LOGITS, u=st.floats(0, 1, exclude_max=True, width=32), sampling=SAMPLING)
@example(logits=np.full(V, 3, np.float32), u=0.999, sampling=Sampling(top_k=1))
def test_the_choice_passes_every_filter(logits, u, sampling):
    """Compared with the definition, in float64, one character at a time."""
    chosen = choose(logits, u, sampling)
    if sampling.temperature == 0:
        assert chosen == int(np.argmax(logits))
        return
    p = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    p /= p.sum()
    if sampling.top_k:
        p = np.where([(p > x).sum() < sampling.top_k for x in p], p, 0)
        p /= p.sum()
    if sampling.top_p < 1:
        p = np.where([p[p > x].sum() < sampling.top_p for x in p], p, 0)
        p /= p.sum()
    p = np.where(p >= sampling.min_p * p.max() * (1 - 1e-9), p, 0)
    p /= p.sum()
    c = np.cumsum(p)
    assert p[chosen] > 0
    assert c[chosen] > u - 1e-6
    assert c[chosen] - p[chosen] <= u + 1e-6


def test_unknown_is_never_chosen():
    logits = np.zeros(V, np.float32)
    logits[3] = 50.0
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_k=1), Sampling(logit_bias={3: 9.0})):
        chosen = {choose(logits, np.float32(u), sampling, never_ids=[3]) for u in np.linspace(0, 1 - 2**-24, 40)}
        assert 3 not in chosen
        assert len(chosen) == (1 if sampling.temperature == 0 else V - 1)
    assert logits[3] == 50.0  # the caller's array is unchanged


@pytest.mark.parametrize(
    ("top_k", "window"), [([0], 1), ([0, 1, 0], 1), ([5, 40], 40), ([0, 99], 99), ([100], 100), ([3, 2**32 - 1], 100)]
)
def test_the_window_holds_the_largest_top_k(top_k, window):
    assert window_of(np.array(top_k), 100).tolist() == [window]


@pytest.mark.parametrize(
    ("parameters", "filtered"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"top_k": 1}, True),
        ({"top_p": 0.99}, True),
        ({"min_p": 0.1}, True),
        ({"logit_bias": {3: 0.0}}, True),
    ],
)
def test_every_parameter_but_temperature_is_a_filter(parameters, filtered):
    assert Sampling(**parameters).filtered == filtered


def test_uniforms_are_philox_with_random_access():
    # To the last digit printed: neighbours of these values differ by 6e-8.
    np.testing.assert_allclose(uniforms(7, 0, 4), [0.16372651, 0.8720734, 0.97226334, 0.29536533], rtol=0, atol=2e-8)
    np.testing.assert_allclose(uniforms(0, 0, 3), [0.03474188, 0.01154673, 0.6119502], rtol=0, atol=2e-8)


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 10_000), count=st.integers(1, 50))
def test_uniforms_have_random_access(seed, start, count):
    whole = np.random.Generator(np.random.Philox(key=seed)).random(start + count, dtype=np.float32)
    np.testing.assert_array_equal(uniforms(seed, start, count), whole[start:])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("min_p", float("nan")),
    ],
)
def test_parameters_without_meaning_are_refused_by_name(parameter, value):
    with pytest.raises(SamplingError, match=parameter) as caught:
        Sampling(**{parameter: value})
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_biases_without_meaning_are_refused(bias):
    with pytest.raises(SamplingError, match="bias"):
        Sampling(logit_bias={3: bias})
