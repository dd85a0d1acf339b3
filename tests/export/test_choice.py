"""Sampling alone: the graph's operators, PyTorch and NumPy agree.

A choice depends on float32 sums, so the three may differ where a boundary is within rounding: only there (`allowed`),
and seldom.
"""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.bundle import VARIANTS
from rill.export.graphs.builder import FLOAT, INT64, SERVING, Graph, model_bytes, tensor
from rill.export.graphs.choice import Choice
from rill.export.parity.compare import session
from rill.sampling import Sampling, choose, window_of
from rill.train.nets.sample import choose as torch_choose

SIZES = [1, 2, 5, 65, 129, 200, 600, 2000]  # by pairs up to 128, then a short search, from 513 on a longer one
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
BY_KEY = {variant.key: variant for variant in VARIANTS}


@cache
def graph_of(key, symbols):
    """A graph of the choice only: from logits [batch, symbols] and its other inputs to ids [batch]."""
    g = Graph("choice")
    choice = Choice(g, BY_KEY[key], symbols)
    g.op("Identity", choice.choose(g, "logits", choice.chance), out="ids")
    inputs = [value for value in choice.inputs() if value.name != "uniforms"]
    inputs += [tensor("logits", FLOAT, ["batch", symbols]), tensor("uniforms", FLOAT, ["batch"])]
    return session(model_bytes(g.finish(inputs, [tensor("ids", INT64, ["batch"])]), {}, SERVING))


def by_graph(variant, logits, u, rows):
    graph, symbols = graph_of(variant.key, logits.shape[1]), logits.shape[1]
    bias = np.zeros(logits.shape, np.float32)
    for row, sampling in enumerate(rows):
        for symbol, value in sampling.logit_bias.items():
            bias[row, symbol] = value
    top_k = np.array([sampling.top_k for sampling in rows])
    feeds = {
        "logits": logits if variant.filters else logits + bias,
        "uniforms": u,
        "logit_bias": bias,
        "top_k": top_k,
        "window": window_of(top_k, symbols),
    }
    feeds |= {
        name: np.array([getattr(sampling, name) for sampling in rows], np.float32)
        for name in ("temperature", "top_p", "min_p")
    }
    return graph.run(None, {value.name: feeds[value.name] for value in graph.get_inputs()})[0]


def by_pytorch(logits, u, rows):
    biased = logits.copy()
    for row, sampling in enumerate(rows):
        for symbol, value in sampling.logit_bias.items():
            biased[row, symbol] += np.float32(value)
    parameters = (
        torch.tensor([getattr(sampling, name) for sampling in rows])
        for name in ("temperature", "top_k", "top_p", "min_p")
    )
    return torch_choose(torch.from_numpy(biased), torch.from_numpy(u), *parameters).numpy()


def by_numpy(logits, u, rows):
    return np.array([choose(*row) for row in zip(logits, u, rows, strict=True)])


IMPLEMENTATIONS = {
    "numpy": by_numpy,
    "pytorch": by_pytorch,
    **{key: lambda *rows, variant=variant: by_graph(variant, *rows) for key, variant in BY_KEY.items()},
}


def fit(sampling, variant, symbols):
    """The parameters as a variant takes them; decode_top_k needs a top-k, which may be all symbols."""
    return Sampling(
        sampling.temperature,
        top_k=(sampling.top_k or symbols * (not variant.logprobs)) if variant.top_k else 0,
        top_p=sampling.top_p if variant.filters else 1.0,
        min_p=sampling.min_p if variant.filters else 0.0,
        logit_bias=sampling.logit_bias,
    )


def implementations(sampling, symbols):
    """The implementations that can take these parameters."""
    fitting = [key for key, variant in BY_KEY.items() if fit(sampling, variant, symbols) == sampling]
    return ["numpy", "pytorch", *fitting]


def choice_of(name, logits, u, sampling):
    """The choice of one row."""
    return int(IMPLEMENTATIONS[name](logits[None].astype(np.float32), np.array([u], np.float32), [sampling])[0])


def assert_all_choose(expected, logits, u, sampling):
    for name in implementations(sampling, len(logits)):
        assert choice_of(name, logits, u, sampling) == expected, name


def assert_all_keep(kept, logits, sampling, names=None):
    """Assert that exactly these symbols are kept: the middle of a symbol's share of u chooses it, for some of them."""
    kept = np.sort(list(kept))
    with np.errstate(under="ignore"):
        mass = np.exp((logits[kept] - logits[kept].max()) / max(sampling.temperature, 1e-9))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    clear = np.flatnonzero(mass / mass.sum() > 1e-5)
    some = clear[np.unique(np.linspace(0, len(clear) - 1, 40).astype(int))]
    rows = np.repeat(logits[None].astype(np.float32), len(some), axis=0)
    for name in names or implementations(sampling, len(logits)):
        got = IMPLEMENTATIONS[name](rows, middle[some].astype(np.float32), [sampling] * len(some))
        assert got.tolist() == kept[some].tolist(), (name, sampling)


# The definition in float64, with room for rounding.


def allowed(logits, u, sampling):
    """The symbols that the definition allows if sums are off by a rounding for each symbol, masses by 1e-6 of theirs.

    Every filter keeps what reaches a threshold, so all filters together do; the threshold is one of the masses between
    that of the loosest and that of the tightest reading.
    """
    logits = logits.copy()
    for symbol, value in sampling.logit_bias.items():
        logits[symbol] += np.float32(value)
    if sampling.temperature == 0:
        return {int(np.argmax(logits))}
    with np.errstate(over="ignore", under="ignore"):
        # To here float32 says exactly what the operands are; tiny temperatures are the smallest that can be divided by.
        temperature = max(np.float32(sampling.temperature), np.finfo(np.float32).tiny)
        exact = (logits - logits.max()) / temperature
        mass = np.exp(exact.astype(np.float64))
    slack = max(len(logits), 32) * 2.0**-24
    low, high = (_threshold(mass, sampling, sign * slack, sign * 1e-6) for sign in (1, -1))
    levels = np.unique(mass)
    first, last = np.searchsorted(levels, [low, high])
    found = set()
    for threshold in levels[first : last + 1]:
        share = np.where(mass >= threshold, mass, 0)
        share /= share.sum()
        until = np.cumsum(share)
        before = np.concatenate([[0.0], until[:-1]])
        room = slack if u > 0 else 1e-37  # nothing but an underflow comes before the first
        found |= set(np.flatnonzero((share > 0) & (before - room <= u) & (u <= until + slack)).tolist())
    return found


def _threshold(mass, sampling, slack, relative):
    """The definition's threshold lies between this and the next larger mass: by groups of equal masses."""
    levels, counts = (values[::-1] for values in np.unique(mass, return_counts=True))
    if sampling.top_k:
        nearer = levels * (1 - relative)
        above = np.array([counts[(nearer > level) & (levels != level)].sum() for level in levels])
        kept = (above < sampling.top_k) | (levels == levels[0])
        levels, counts = levels[kept], counts[kept]
    lowest = levels[-1]
    if sampling.top_p < 1:
        above = np.cumsum(levels * counts) - levels * counts
        kept = above < min(max(sampling.top_p + slack, 1e-30), 1.0) * (levels * counts).sum()
        lowest = levels[kept][-1]
    return max(lowest * (1 - max(relative, 0)), sampling.min_p * (1 - relative))


def disagreements(logits, u, rows, variants=VARIANTS):
    """How many choices differ from NumPy's, and the number of choices; each must be allowed."""
    different = total = 0
    for variant in variants:
        fitted = [fit(sampling, variant, logits.shape[1]) for sampling in rows]
        results = [implement(logits, u, fitted) for implement in (by_numpy, by_pytorch)]
        results.append(by_graph(variant, logits, u, fitted))
        for row in np.flatnonzero(np.ptp(results, axis=0)):
            right = allowed(logits[row], u[row], fitted[row])
            got = [int(result[row]) for result in results]
            assert set(got) <= right, (variant.key, logits.shape, row, got, right, fitted[row])
        different += sum(int((result != results[0]).sum()) for result in results[1:])
        total += 2 * len(rows)
    return different, total


# Agreement

NUMBERS = st.floats(-120, 120, width=32)
LEVELS = st.lists(st.one_of(NUMBERS, st.sampled_from([0.0, -87.5, -100.0, -103.9, 50.0])), min_size=1, max_size=6)


@st.composite
def logits_of(draw, symbols):
    """Few distinct levels, so that there are ties, or many values close to them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = np.array(draw(LEVELS), np.float32)
    spread = draw(st.sampled_from([0.0, 0.0, 1e-7, 1e-5, 0.01, 1.0, 5.0]))
    logits = levels[rng.integers(len(levels), size=symbols)] + rng.normal(0, spread, symbols)
    if draw(st.booleans()):
        logits[rng.random(symbols) < draw(st.sampled_from([0.01, 0.5, 1.0]))] = -np.inf
        logits[rng.integers(symbols)] = draw(NUMBERS)
    logits[np.abs(logits) < 1e-20] = 0  # greedy's temperature tells no logits apart that are nearer than 1e-36
    return logits.astype(np.float32)


def samplings(symbols):
    return st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1e-45, 1e-30, 1e-4, 0.3, 1.0, 1.0, 2.5, 50.0, 1e6]),
        top_k=st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, max(symbols - 1, 1), symbols, symbols + 1, 2**32 - 1]),
        top_p=st.one_of(
            st.sampled_from([1.0, BELOW_ONE, 1e-45, 1e-20, 1e-6, 0.5, 0.95]), st.floats(2**-10, 1, width=32)
        ),
        min_p=st.one_of(st.sampled_from([0.0, 0.0, 1.0, 1e-44, 1e-9, 0.05]), st.floats(0, 1, width=32)),
        logit_bias=st.one_of(
            st.just({}),
            st.dictionaries(st.integers(0, symbols - 1), st.integers(-36, 36).map(lambda quarters: quarters / 4)),
        ),
    )


@st.composite
def batches(draw):
    symbols = draw(st.sampled_from(SIZES))
    count = draw(st.integers(1, 5))
    logits = np.stack([draw(logits_of(symbols)) for _ in range(count)])
    u = [draw(st.one_of(st.sampled_from([0.0, BELOW_ONE]), st.floats(0, BELOW_ONE, width=32))) for _ in range(count)]
    return logits, np.array(u, np.float32), [draw(samplings(symbols)) for _ in range(count)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(batch=batches())
def test_the_three_agree_up_to_rounding(batch):
    disagreements(*batch)


KINDS = {
    "normal": lambda rng, shape: rng.normal(0, rng.uniform(0.5, 5), shape),
    "ties": lambda rng, shape: rng.integers(0, 4, shape),
    "one has it all": lambda rng, shape: rng.normal(0, 1, shape) + 200 * (np.arange(shape[1]) == shape[1] // 2),
    "denormals": lambda rng, shape: -rng.uniform(0, 110, shape),
    "flat": lambda rng, shape: rng.normal(0, 0.1, shape),
}


@pytest.mark.parametrize("symbols", SIZES)
def test_they_seldom_differ(symbols):
    rng = np.random.default_rng(symbols)
    count = 60
    different = total = 0
    for make in KINDS.values():
        rows = [
            Sampling(
                temperature=float(rng.choice([0.0, 1.0, 0.5, 1.7])),
                top_k=int(rng.choice([0, 1, 2, 5, 40, symbols, 2**32 - 1])),
                top_p=float(np.float32(rng.choice([1.0, rng.uniform(0.01, 0.99)]))),
                min_p=float(np.float32(rng.choice([0.0, rng.uniform(0, 0.3)]))),
                logit_bias={int(rng.integers(symbols)): float(rng.integers(-3, 3))},
            )
            for _ in range(count)
        ]
        logits = make(rng, (count, symbols)).astype(np.float32)
        few = disagreements(logits, rng.random(count, np.float32), rows)
        different, total = different + few[0], total + few[1]
    assert different / total < 0.003


@pytest.mark.parametrize(
    ("symbols", "spread", "most"),
    [(65, 1e-6, 1.0), (129, 1e-6, 1.0), (600, 1e-6, 1.0), (129, 1e-4, 0.05), (300, 1e-4, 0.05), (2000, 1e-3, 0.02)],
)
def test_nearly_equal_masses_differ_only_where_rounding_decides(symbols, spread, most):
    """The nearer they are, the more of them are sorted; within rounding, any of them may be first."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, spread, (30, symbols))
    logits[:, 0] -= rng.uniform(0, 12, 30)
    rows = [Sampling(top_p=float(p), top_k=k) for p, k in zip(rng.random(30, np.float32), [0, 40] * 15, strict=True)]
    different, total = disagreements(logits.astype(np.float32), rng.random(30, np.float32), rows)
    assert different / total <= most


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.key)
@pytest.mark.parametrize("symbols", [57, 65, 129, 201, 301])
def test_a_choice_does_not_depend_on_the_position_in_the_batch(symbols, variant):
    """Even on a knife's edge: p is the sum of the first few masses up to rounding, so the last one may be dropped."""
    rng = np.random.default_rng(symbols)
    for _ in range(100):
        logits = rng.normal(0, 1.5, symbols).astype(np.float32)
        ordered = np.sort(np.exp(logits - logits.max()))[::-1].astype(float)
        p = float(np.float32(ordered[: rng.integers(2, symbols // 2)].sum() / ordered.sum()))
        sampling = fit(Sampling(top_p=p), variant, symbols)
        chosen = {
            choice
            for batch in (1, 2, 9)
            for choice in by_graph(
                variant, np.repeat(logits[None], batch, 0), np.full(batch, BELOW_ONE, np.float32), [sampling] * batch
            ).tolist()
        }
        assert len(chosen) == 1


# Semantics


def tied(symbols):
    """Three levels: few at the top, one in five below, the rest at the bottom."""
    index = np.arange(symbols)
    return np.where(index % 50 == 3, 2.0, np.where(index % 5 == 0, 1.0, -1.0))


@pytest.mark.parametrize("symbols", [65, 200, 300, 2000])
def test_ties_are_kept_together(symbols):
    logits = tied(symbols)
    top, middle = (np.flatnonzero(logits >= level) for level in (2, 1))
    mass = np.exp(logits)
    of_top, of_middle = mass[top].sum() / mass.sum(), mass[middle].sum() / mass.sum()
    cases = [
        (Sampling(top_k=1), top),
        (Sampling(top_k=len(top)), top),
        (Sampling(top_k=len(top) + 1), middle),
        (Sampling(top_k=len(middle)), middle),
        (Sampling(top_k=len(middle) + 1), range(symbols)),
        (Sampling(top_p=1e-45), top),
        (Sampling(top_p=of_top - 1e-3), top),
        (Sampling(top_p=of_top + 1e-3), middle),
        (Sampling(top_p=of_middle + 1e-3), range(symbols)),
        (Sampling(top_p=BELOW_ONE), range(symbols)),
        (Sampling(top_k=len(middle), top_p=BELOW_ONE), middle),
        (Sampling(min_p=1.0), top),
        (Sampling(min_p=np.exp(-1.0) - 1e-3), middle),
        (Sampling(min_p=np.exp(-1.0) + 1e-3), top),
        (Sampling(min_p=1e-3), range(symbols)),
        (Sampling(top_k=len(top) + 1, min_p=1.0), top),
        # top-p acts on what top-k kept, renormalised: all of the mass less 0.001 needs the lower level too.
        (Sampling(top_k=len(top), top_p=1 - 1e-3), top),
        (Sampling(top_k=len(middle), top_p=of_top / of_middle - 1e-3), top),
        (Sampling(top_k=len(middle), top_p=of_top / of_middle + 1e-3), middle),
        (Sampling(temperature=1e-30), top),
        (Sampling(temperature=0.05, top_p=1e-3), top),
    ]
    for sampling, kept in cases:
        assert_all_keep(kept, logits, sampling)


@pytest.mark.parametrize("symbols", [129, 300, 2000])
@pytest.mark.parametrize("above", [0, 1, 15, 16, 17, 63, 64, 65])
def test_equals_across_the_end_of_what_is_sorted(symbols, above):
    """16 or 64 masses are sorted at a time: some larger ones, then equals beyond the end, then smaller ones."""
    rng = np.random.default_rng(above)
    places = rng.permutation(symbols)
    logits = np.full(symbols, -3.0)
    logits[places[:above]] = rng.uniform(0.2, 0.4, above)  # about where the equals are
    logits[places[above : max(above + 25, symbols // 2)]] = 0.0
    kept = np.flatnonzero(logits >= 0)
    mass = np.exp(logits) / np.exp(logits).sum()
    in_their_middle = float(mass[logits > 0].sum() + mass[logits >= 0].sum()) / 2
    for sampling in (
        Sampling(top_p=in_their_middle),
        Sampling(top_k=above + 1),
        Sampling(top_k=above + 1, top_p=0.99999),
        Sampling(top_k=len(kept), top_p=0.99999),
    ):
        assert_all_keep(kept, logits.astype(np.float32), sampling)


@pytest.mark.parametrize("symbols", [1, 65, 200, 2000])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=1, top_p=0.3, min_p=1.0), Sampling(top_p=1e-30)])
def test_all_equal(symbols, sampling):
    for index in {0, symbols // 3, symbols - 1}:
        assert_all_choose(index, np.full(symbols, -7.25), (index + 0.5) / symbols, sampling)
    assert_all_choose(0, np.full(symbols, -7.25), 0.0, sampling)
    assert_all_choose(symbols - 1, np.full(symbols, -7.25), BELOW_ONE, sampling)


@pytest.mark.parametrize("symbols", [65, 200, 300])
def test_filters_that_are_off_keep_everything(symbols):
    logits = -0.02 * np.arange(symbols)[::-1]
    for top_k in (0, symbols, symbols + 1, 2**31, 2**32 - 1):
        assert_all_keep(range(symbols), logits, Sampling(top_k=top_k))
        assert_all_keep(range(symbols), logits, Sampling(top_k=top_k, top_p=BELOW_ONE, min_p=1e-6))


@pytest.mark.parametrize("symbols", [65, 200, 300, 2000])
def test_just_below_one_drops_only_what_is_beyond_rounding(symbols):
    """Each mass is half of the previous one: what p = 1 - 2^-24 drops is invisible."""
    logits = np.full(symbols, -200.0)
    logits[:40] = -np.log(2) * np.arange(40)
    assert_all_keep(range(symbols), logits, Sampling(top_p=BELOW_ONE))
    # p = 1 - 2^-10.5 needs eleven of them, and gives their shares of the rest to them.
    assert_all_keep(range(11), logits, Sampling(top_p=1 - 2**-10.5))


@pytest.mark.parametrize("symbols", SIZES[2:])
def test_filters_never_drop_the_largest(symbols):
    """Whatever the rounding of the threshold."""
    rng = np.random.default_rng(symbols)
    logits = rng.normal(0, rng.uniform(0.1, 5, (300, 1)), (300, symbols)).astype(np.float32)
    for sampling in (Sampling(min_p=1.0), Sampling(top_p=1e-45), Sampling(top_k=1), Sampling(1, symbols, 1e-6, 1.0)):
        for name in implementations(sampling, symbols):
            chosen = IMPLEMENTATIONS[name](logits, rng.random(300, np.float32), [sampling] * 300)
            assert chosen.tolist() == logits.argmax(1).tolist(), (name, sampling)


@pytest.mark.parametrize("p", [1e-45, 1e-30, 1e-4, 4e-4])
def test_a_top_p_below_the_share_of_one_keeps_one(p):
    logits = np.where(np.arange(2000) == 7, 0.01, 0.0)
    for top_k in (0, 1, 50, 2000):
        for u in (0.0, 0.5, BELOW_ONE):
            assert_all_choose(7, logits, u, Sampling(top_k=top_k, top_p=p))


def test_greedy_is_the_first_of_the_largest():
    for symbols in SIZES[2:]:
        logits = np.zeros(symbols)
        logits[symbols // 2 :] = 1.5
        for u in (0.0, 0.5, BELOW_ONE):
            for filters in ({}, {"top_k": 3}, {"top_p": 0.1}, {"min_p": 0.5, "top_k": 2**32 - 1, "top_p": 0.9}):
                assert_all_choose(symbols // 2, logits, u, Sampling(temperature=0, **filters))
        logits[-1] = np.nextafter(np.float32(1.5), np.float32(2))
        assert_all_choose(symbols - 1, logits, 0.3, Sampling(temperature=0))


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-20])
def test_a_temperature_near_zero_leaves_the_largest(temperature):
    """It draws among the largest, in finite arithmetic throughout."""
    for symbols in SIZES[2:]:
        logits = -np.arange(symbols, dtype=float)
        logits[[1, symbols - 1]] = 30.0
        for filters in ({}, {"top_k": 1}, {"top_p": 0.2}, {"min_p": 1.0}):
            assert_all_choose(1, logits, 0.49, Sampling(temperature=temperature, **filters))
            assert_all_choose(symbols - 1, logits, 0.51, Sampling(temperature=temperature, **filters))


@pytest.mark.parametrize("symbols", SIZES[1:])
@pytest.mark.parametrize("by_bias", [True, False])
def test_banned_characters_are_never_chosen(symbols, by_bias):
    """Not even at the ends of u, where no mass suffices."""
    banned = [*range(symbols // 2), *range(symbols // 2 + 1, symbols)]
    logits = np.linspace(5, 9, symbols)
    bias = dict.fromkeys(banned, -np.inf) if by_bias else {}
    if not by_bias:
        logits[banned] = -np.inf
    for filters in ({}, {"temperature": 0}, {"top_k": symbols}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.001}):
        for u in (0.0, 0.5, BELOW_ONE):
            assert_all_choose(symbols // 2, logits, u, Sampling(**filters, logit_bias=bias))


@pytest.mark.parametrize("symbols", SIZES[1:])
def test_one_with_all_the_mass(symbols):
    for place in {0, symbols // 2, symbols - 1}:
        logits = np.where(np.arange(symbols) == place, 300.0, np.linspace(-5, 5, symbols))
        for filters in ({}, {"top_k": 1}, {"top_k": symbols}, {"top_p": BELOW_ONE}, {"top_p": 0.01}, {"min_p": 1e-30}):
            for u in (1e-30, 0.5, BELOW_ONE):
                assert_all_choose(place, logits, u, Sampling(**filters))


@pytest.mark.parametrize("symbols", SIZES[2:])
def test_the_ends_of_u_are_the_first_and_the_last_that_are_kept(symbols):
    logits = np.full(symbols, -1.0)
    logits[[1, symbols - 2]] = 1.0
    for filters in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.9}, {"top_k": 1, "top_p": 0.5, "min_p": 0.3}):
        assert_all_choose(1, logits, 0.0, Sampling(**filters))
        assert_all_choose(symbols - 2, logits, BELOW_ONE, Sampling(**filters))


def test_a_bias_is_added_before_the_temperature():
    for symbols in SIZES[2:]:
        logits = np.linspace(0, 1, symbols)
        assert_all_choose(2, logits, 0.5, Sampling(temperature=0, logit_bias={2: 1.5}))
        # exp(20 / 2) and exp(19 / 2) above the rest, which is next to nothing: the first has 0.62 of the mass.
        bias = {1: 20.0 - float(logits[1]), 3: 19.0 - float(logits[3])}
        heavy = Sampling(temperature=0.5, logit_bias=bias)
        assert_all_choose(1, logits, 0.87, heavy)
        assert_all_choose(3, logits, 0.89, heavy)


# The table: logits by a formula, parameters, u -> id, in every implementation that takes the parameters.


def formula(symbols):
    """Whole sixteenths between -4 and 4, each of them several times."""
    index = np.arange(symbols)
    return ((index * index * 7 + index * 3) % 129 - 64) / 16


UNIFORMS = (0.0, 0.13, 0.47, 0.81, BELOW_ONE)
GOLDEN = [
    (65, {}, [0, 7, 40, 52, 64]),
    (65, {"temperature": 0.0}, [4, 4, 4, 4, 4]),
    (65, {"temperature": 0.5}, [0, 4, 45, 52, 64]),
    (65, {"temperature": 2.0, "top_p": 0.7}, [4, 11, 40, 52, 64]),
    (65, {"top_k": 7}, [4, 4, 45, 52, 58]),
    (65, {"top_k": 40, "top_p": 0.9}, [4, 7, 40, 52, 64]),
    (65, {"top_p": 0.35}, [4, 4, 14, 52, 52]),
    (65, {"min_p": 0.2}, [4, 7, 33, 52, 63]),
    (65, {"top_k": 30, "top_p": 0.8, "min_p": 0.3, "temperature": 1.5}, [4, 7, 40, 52, 64]),
    (65, {"logit_bias": {0: 7.0, 9: -np.inf, 60: 4.0}, "top_p": 0.6}, [4, 14, 60, 60, 60]),
    (300, {}, [0, 47, 133, 224, 299]),
    (300, {"temperature": 0.0}, [72, 72, 72, 72, 72]),
    (300, {"temperature": 0.5}, [0, 47, 133, 218, 299]),
    (300, {"temperature": 2.0, "top_p": 0.7}, [4, 47, 136, 224, 298]),
    (300, {"top_k": 7}, [4, 14, 133, 229, 272]),
    (300, {"top_k": 40, "top_p": 0.9}, [4, 47, 133, 210, 289]),
    (300, {"top_p": 0.35}, [4, 47, 133, 207, 272]),
    (300, {"min_p": 0.2}, [4, 47, 133, 224, 291]),
    (300, {"top_k": 30, "top_p": 0.8, "min_p": 0.3, "temperature": 1.5}, [4, 47, 133, 207, 272]),
    (300, {"logit_bias": {0: 7.0, 9: -np.inf, 60: 4.0}, "top_p": 0.6}, [4, 58, 78, 204, 272]),
]


@pytest.mark.parametrize(("symbols", "parameters", "chosen"), GOLDEN)
def test_golden_vectors(symbols, parameters, chosen):
    for u, expected in zip(UNIFORMS, chosen, strict=True):
        assert expected in allowed(formula(symbols).astype(np.float32), u, Sampling(**parameters))
        assert_all_choose(expected, formula(symbols), u, Sampling(**parameters))
