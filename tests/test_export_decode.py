"""What the engine relies on in the serving graph: a row's bits depend on the row alone."""

import numpy as np
import pytest
from conftest import LETTERS, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from export.compare import decode_feeds, session
from export.export import build_bundle
from export.sampling import Sampling, uniforms

LAYERS, HIDDEN = 2, 32


@pytest.fixture(scope="module")
def graphs():
    bundle = build_bundle(make_run(layers=LAYERS, hidden=HIDDEN, embedding=8), "two")
    return {filters: session(bundle.graphs["decode_filters" if filters else "decode"]) for filters in (False, True)}


def generate(graph, rows, cuts):
    """Characters of `rows` (seed, prompt) over calls of `cuts` steps each, the rows in one batch."""
    time = sum(cuts)
    token = np.array([prompt[0] for _, prompt in rows])
    state = np.zeros((LAYERS, len(rows), HIDDEN), np.float32)
    forced = np.full((time, len(rows)), -1)
    u = np.zeros((time, len(rows)), np.float32)
    for column, (seed, prompt) in enumerate(rows):
        forced[: len(prompt) - 1, column] = prompt[1:]
        u[len(prompt) - 1 :, column] = uniforms(seed, 0, time - len(prompt) + 1)
    pieces, at = [], 0
    for cut in cuts:
        feeds = decode_feeds(graph, token, state, u[at : at + cut], Sampling())
        feeds["forced"] = forced[at : at + cut]
        tokens, state = graph.run(["tokens", "next_state_h"], feeds)
        token, at = tokens[-1], at + cut
        pieces.append(tokens)
    return np.concatenate(pieces), state


ROWS = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.lists(st.integers(0, len(LETTERS) - 1), min_size=1, max_size=5)),
    min_size=1,
    max_size=70,
)
CUTS = st.lists(st.integers(1, 9), min_size=4, max_size=4)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, cuts=CUTS, filters=st.booleans(), data=st.data())
def test_a_row_is_the_same_alone_and_in_any_batch_and_cut(graphs, rows, cuts, filters, data):
    tokens, state = generate(graphs[filters], rows, cuts)
    row = data.draw(st.integers(0, len(rows) - 1))
    alone, alone_state = generate(graphs[False], [rows[row]], [sum(cuts)])
    np.testing.assert_array_equal(tokens[:, row], alone[:, 0])
    np.testing.assert_array_equal(state[:, row], alone_state[:, 0])


@pytest.mark.parametrize("filters", [False, True])
def test_rows_stop_at_limits_of_their_own(graphs, filters):
    rng = np.random.default_rng(0)
    batch, time = 9, 12
    token, u = rng.integers(len(LETTERS), size=batch), rng.random((time, batch), np.float32)
    state = rng.uniform(-1, 1, (LAYERS, batch, HIDDEN)).astype(np.float32)
    feeds = decode_feeds(graphs[filters], token, state, u, Sampling())
    feeds["steps"] = np.arange(batch)  # 0 steps too
    tokens, next_state = graphs[filters].run(["tokens", "next_state_h"], feeds)
    np.testing.assert_array_equal(next_state[:, 0], state[:, 0])
    for row in range(1, batch):
        alone = decode_feeds(graphs[filters], token[[row]], state[:, [row]], u[:row, [row]], Sampling())
        alone_tokens, alone_state = graphs[filters].run(["tokens", "next_state_h"], alone)
        np.testing.assert_array_equal(tokens[:row, row], alone_tokens[:, 0])
        np.testing.assert_array_equal(next_state[:, row], alone_state[:, 0])


@pytest.mark.parametrize("filters", [False, True])
def test_a_cut_inside_a_call_is_exact_by_replay(graphs, filters):
    """Replaying the first k characters as forced ones, from the state before the call, gives the state after k."""
    start = [(7, [0])]
    tokens, _ = generate(graphs[filters], start, [20])
    for k in (1, 7, 19):
        expected, expected_state = generate(graphs[filters], start, [k])
        feeds = decode_feeds(
            graphs[filters],
            np.array([0]),
            np.zeros((LAYERS, 1, HIDDEN), np.float32),
            np.zeros((k, 1), np.float32),
            Sampling(),
        )
        feeds["forced"] = tokens[:k]
        replayed, state = graphs[filters].run(["tokens", "next_state_h"], feeds)
        np.testing.assert_array_equal(replayed, expected)
        np.testing.assert_array_equal(state, expected_state)


def test_unknown_is_read_but_never_produced():
    run = make_run(symbols=("<unk>", *LETTERS), seed=3)
    run.weights["linear.bias"][0] = 50.0  # by far the most probable symbol
    bundle = build_bundle(run, "unk")
    for key in ("decode", "decode_filters"):
        graph = session(bundle.graphs[key])
        for sampling in (Sampling(), Sampling(temperature=0), Sampling(temperature=30)):
            u = np.random.default_rng(0).random((50, 8), np.float32)
            feeds = decode_feeds(graph, np.zeros(8, np.int64), np.zeros((1, 8, 32), np.float32), u, sampling)
            (tokens,) = graph.run(["tokens"], feeds)
            assert tokens.min() > 0
