"""The sampler: its three implementations agree, and do what the contract says."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.compare import session
from export.decode import decode_graph
from export.sampling import Sampling, SamplingError, choose, uniforms
from export.weights import Layer, Weights
from train.sample import choose as torch_choose

V = 11


def _graph(filters):
    """A serving graph whose logits are all zero, so that `logit_bias` is the logits."""
    layer = Layer(np.zeros((6, V)), np.zeros((6, 2)), np.zeros(6), np.zeros(6))
    return session(decode_graph(Weights(None, (layer,), np.zeros((V, 2)), np.zeros(V)), None, filters, {}))


GRAPH = _graph(filters=True)


def graph_choose(logits, u, sampling):
    feeds = {
        "token": np.zeros(1, np.int64),
        "state_h": np.zeros((1, 1, 2), np.float32),
        "uniforms": np.array([[u]], np.float32),
        "forced": np.array([[-1]]),
        "steps": np.array([1]),
        "temperature": np.array([sampling.temperature], np.float32),
        "top_k": np.array([sampling.top_k]),
        "top_p": np.array([sampling.top_p], np.float32),
        "min_p": np.array([sampling.min_p], np.float32),
        "logit_bias": logits[None],
    }
    return int(GRAPH.run(["tokens"], feeds)[0][0, 0])


def pytorch_choose(logits, u, sampling):
    values = (u, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return int(torch_choose(torch.from_numpy(logits)[None], *(torch.tensor([value]) for value in values)))


# Few distinct values give ties; whole tenths keep the three away from one another's rounding.
LOGITS = st.lists(st.integers(-40, 40), min_size=V, max_size=V).map(lambda tenths: np.array(tenths, np.float32) / 10)
SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 5, V - 1, V, V + 5, 2**32 - 1]),
    top_p=st.sampled_from([0.013, 0.31, 0.77, 0.953, 1.0]),
    min_p=st.sampled_from([0.0, 0.0171, 0.313, 1.0]),
)


@settings(max_examples=400, deadline=None)
@given(logits=LOGITS, u=st.integers(0, 2**24 - 1), sampling=SAMPLING)
def test_three_implementations_agree(logits, u, sampling):
    u = np.float32(u / 2**24)
    expected = choose(logits, u, sampling)
    got = {graph_choose(logits, u, sampling), pytorch_choose(logits, u, sampling)}
    if got != {expected}:
        # They sum in different orders: allowed where the boundary is within rounding of u, and nowhere else.
        near = {choose(logits, np.float32(np.clip(u + d, 0, 1 - 2**-24)), sampling) for d in (-1e-6, 1e-6)}
        assert got <= near | {expected}


@settings(max_examples=300, deadline=None)
@given(logits=LOGITS, u=st.floats(0, 1, exclude_max=True, width=32), sampling=SAMPLING)
@example(logits=np.full(V, 3, np.float32), u=0.999, sampling=Sampling(top_k=1))
def test_the_choice_passes_every_filter(logits, u, sampling):
    """Checked against the definition, in float64, one character at a time."""
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


IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [choose, graph_choose, pytorch_choose])


@IMPLEMENTATIONS
def test_ties_stay_together(implementation):
    logits = np.array([1, 3, 2, 3, 2, 3, 0, 0, 0, 0, 0], np.float32)
    seen = {implementation(logits, np.float32(u), Sampling(top_k=2)) for u in np.linspace(0, 0.9999, 50)}
    assert seen == {1, 3, 5}
    seen = {implementation(logits, np.float32(u), Sampling(top_p=0.1)) for u in np.linspace(0, 0.9999, 50)}
    assert seen == {1, 3, 5}


@IMPLEMENTATIONS
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-38, 1e-20])
def test_greedy_and_its_limit(implementation, temperature):
    logits = np.array([-3, 1.5, 1.5000001, 1.5000001, 0, 0, 0, 0, 0, 0, 0], np.float32)
    assert implementation(logits, np.float32(0), Sampling(temperature=temperature)) == 2
    if temperature == 0:
        assert implementation(logits, np.float32(0.99), Sampling(temperature=0)) == 2


@IMPLEMENTATIONS
def test_banned_characters_and_one_with_all_the_mass(implementation):
    logits = np.full(V, -np.inf, np.float32)
    logits[4] = -2.5
    for u in (0.0, 0.5, 1 - 2**-24):
        for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_k=V, top_p=0.5, min_p=1.0)):
            assert implementation(logits, np.float32(u), sampling) == 4


@IMPLEMENTATIONS
def test_the_whole_range_of_u_is_used_in_vocabulary_order(implementation):
    logits = np.zeros(V, np.float32)
    got = [implementation(logits, np.float32((i + 0.5) / V), Sampling()) for i in range(V)]
    assert got == list(range(V))
    assert implementation(logits, np.float32(1 - 2**-24), Sampling()) == V - 1


def test_unfiltered_graph_agrees_with_the_filtered_one():
    """Same bits where nothing is filtered: a stream's text does not depend on which variant made it."""
    rng = np.random.default_rng(2)
    k = rng.normal(size=(V, 2)) * 3
    layer = Layer(rng.normal(size=(6, V)), rng.normal(size=(6, 2)), rng.normal(size=6), rng.normal(size=6))
    weights = Weights(None, (layer,), k, rng.normal(size=V))
    plain, filtered = (session(decode_graph(weights, None, filters, {})) for filters in (False, True))
    feeds = {
        "token": np.zeros(200, np.int64),
        "state_h": rng.uniform(-1, 1, (1, 200, 2)).astype(np.float32),
        "uniforms": rng.random((30, 200), np.float32),
        "forced": np.full((30, 200), -1),
        "steps": np.full(200, 30),
        "temperature": rng.choice([0, 0.5, 1, 2], 200).astype(np.float32),
    }
    off = {
        "top_k": np.zeros(200, np.int64),
        "top_p": np.ones(200, np.float32),
        "min_p": np.zeros(200, np.float32),
        "logit_bias": np.zeros((200, V), np.float32),
    }
    for got, expected in zip(filtered.run(None, feeds | off), plain.run(None, feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_uniforms_are_philox_with_random_access():
    # To the last digit printed: neighbours of these values differ by 6e-8.
    np.testing.assert_allclose(uniforms(7, 0, 4), [0.16372651, 0.8720734, 0.97226334, 0.29536533], rtol=0, atol=2e-8)
    np.testing.assert_allclose(uniforms(0, 0, 3), [0.03474188, 0.01154673, 0.6119502], rtol=0, atol=2e-8)


@given(seed=st.integers(0, 2**64 - 1), start=st.integers(0, 10_000), count=st.integers(1, 50))
def test_any_uniform_can_be_had_without_those_before(seed, start, count):
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
