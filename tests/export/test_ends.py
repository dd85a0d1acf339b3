"""End symbols in the serving graphs: a step that chooses one leaves its row as it was, in any batch and any calls."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import MOLECULES, make_run

from rill.bundle import VARIANTS
from rill.export.graphs.build import build_bundle
from rill.export.parity.compare import decode_feeds, random_states, run_graph, session, take_rows, zero_states
from rill.export.parity.reference import next_states, pytorch_call
from rill.sampling import Sampling
from rill.vocabulary import Vocabulary

TWO_ENDS = Vocabulary((*"abcdefghijklmnopqrstuvwxyz", "<unk>", "<s>", ".", "</s>"), "characters", "<s>", (".", "</s>"))
MODELS = {
    "gru": {"symbols": MOLECULES},
    "gru, int8": {"symbols": MOLECULES, "ngrams": 3},
    "lstm": {"symbols": TWO_ENDS, "cell": "lstm", "layers": 2, "ngrams": 4, "ngram_rows": 50},
    "rnn": {"symbols": TWO_ENDS, "cell": "rnn", "embedding": 5},
    "reset before": {"symbols": TWO_ENDS, "reset": "before", "ngrams": 2},
}
KEYS = [variant.key for variant in VARIANTS]


@cache
def made(name):
    run = make_run(**MODELS[name], seed=1)
    bundle = build_bundle(run, "x", "int8" if "int8" in name else "fp32")
    return run, bundle, {key: session(bundle.graphs[key], bundle) for key in KEYS}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, values in got.items():
        assert values.tobytes() == np.ascontiguousarray(expected[name]).tobytes(), name


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12)
@given(data=st.data())
def test_a_text_ends_with_the_state_before_its_end(name, data):
    """Whatever the graph, the batch, and the calls that the steps are cut into; forced or sampled."""
    _, bundle, graphs = made(name)
    graph = graphs[data.draw(st.sampled_from(KEYS))]
    seed, batch = data.draw(st.integers(0, 2**32)), data.draw(st.integers(1, 5))
    cuts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rng, vocabulary, time = np.random.default_rng(seed), bundle.vocabulary, sum(cuts)
    states, token = random_states(bundle, batch, rng), rng.integers(len(vocabulary), size=batch)
    u, forced = rng.random((time, batch), np.float32), rng.integers(-3, len(vocabulary), size=(time, batch))
    sampling = Sampling(top_k=5) if "top_k" in {value.name for value in graph.get_inputs()} else Sampling()

    def run(token, states, first, last, rows, steps=None):
        feeds = decode_feeds(graph, token, states, u[first:last, rows], sampling)
        feeds["forced"] = np.maximum(forced[first:last, rows], -1)
        if steps is not None:
            feeds["steps"] = steps
        return run_graph(graph, feeds)

    whole = run(token, states, 0, time, slice(None))
    is_end = np.isin(whole["tokens"], vocabulary.end_ids)
    steps = np.where(is_end.any(axis=0), is_end.argmax(axis=0), time)  # without the end
    assert_same(next_states(whole), next_states(run(token, states, 0, time, slice(None), steps)))
    for row in range(batch):
        at, one, last = 0, take_rows(states, [row]), token[[row]]
        for cut in cuts:
            outputs = run(last, one, at, at + cut, [row])
            shown = min(cut, int(steps[row]) + 1 - at)
            assert outputs["tokens"][:shown, 0].tolist() == whole["tokens"][at : at + shown, row].tolist()
            if "logprobs" in outputs:
                assert_same({"": outputs["logprobs"][:shown]}, {"": whole["logprobs"][at : at + shown, [row]]})
            one, last, at = next_states(outputs), outputs["tokens"][-1], at + cut
            if at > steps[row]:
                break
        assert_same(one, take_rows(next_states(whole), [row]))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_end_has_the_log_probability_that_the_model_gives_it(name):
    run, bundle, graphs = made(name)
    vocabulary, rng = bundle.vocabulary, np.random.default_rng(5)
    states, token = random_states(bundle, 9, rng), rng.integers(len(vocabulary), size=9)
    feeds = decode_feeds(graphs["decode_logprobs"], token, states, np.zeros((2, 9), np.float32), Sampling())
    feeds["forced"][0] = vocabulary.end_ids[-1]
    outputs = run_graph(graphs["decode_logprobs"], feeds)
    with torch.inference_mode():
        logits = pytorch_call(run.build())(token[:, None], states)["logits"][:, 0]
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=1)[:, vocabulary.end_ids[-1]]
    np.testing.assert_allclose(outputs["logprobs"][0], expected, rtol=1e-5, atol=1e-5)


def test_what_is_never_generated_is_not_among_the_alternatives_either():
    run = make_run(symbols=TWO_ENDS)
    run.weights["linear.bias"][list(TWO_ENDS.never_ids)] = 50.0
    bundle = build_bundle(run, "x")
    for key in KEYS:
        graph = session(bundle.graphs[key])
        u = np.random.default_rng(0).random((30, 8), np.float32)
        outputs = run_graph(graph, decode_feeds(graph, np.zeros(8, np.int64), zero_states(bundle, 8), u, Sampling()))
        assert not np.isin(outputs["tokens"], TWO_ENDS.never_ids).any()
        if "top_tokens" in outputs:
            assert not np.isin(outputs["top_tokens"], TWO_ENDS.never_ids).any()
            assert np.isfinite(outputs["top_logprobs"]).all()


def test_a_start_symbol_that_is_an_end_symbol_too_can_be_chosen():
    vocabulary = Vocabulary(("\n", *"abcdef"), "characters", "\n", ("\n",))
    bundle = build_bundle(make_run(symbols=vocabulary), "x")
    graph = session(bundle.graphs["decode"])
    u = np.random.default_rng(0).random((60, 8), np.float32)
    outputs = run_graph(graph, decode_feeds(graph, np.zeros(8, np.int64), zero_states(bundle, 8), u, Sampling()))
    assert (outputs["tokens"] == 0).any()


def test_graphs_of_models_without_ends_have_nothing_of_this():
    bundle = build_bundle(make_run(), "x")
    assert not any(b"goes_on" in graph for graph in bundle.graphs.values())
