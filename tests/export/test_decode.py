"""The engine relies on this: a row's bits depend on the row only, in every variant and cell of the serving graphs."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import LETTERS, make_run

from rill.bundle import VARIANTS
from rill.export.graphs.build import build_bundle
from rill.export.graphs.choice import ALTERNATIVES
from rill.export.parity.compare import decode_feeds, random_states, run_graph, session, zero_states
from rill.export.parity.reference import next_states
from rill.sampling import Sampling, uniforms, window_of
from rill.vocabulary import UNKNOWN

MANY = tuple(map(chr, range(0x4E00, 0x4E00 + 300)))  # a vocabulary that is searched, not compared by pairs
MODELS = {
    "gru": {"layers": 2, "embedding": 8},
    "gru, reset before": {"reset": "before", "layers": 2},
    "lstm": {"cell": "lstm", "layers": 2},
    "rnn": {"cell": "rnn", "embedding": 5},
    "residual": {"layers": 3, "residual": True, "bias": False},
    "residual lstm": {"cell": "lstm", "layers": 3, "residual": True},
    "wide": {"hidden": 200, "symbols": MANY[:120]},
    "many": {"cell": "lstm", "symbols": MANY},
}
KEYS = [variant.key for variant in VARIANTS]
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_PRECISION = pytest.mark.parametrize("precision", ["fp32", "int8"])
EVERY_VARIANT = pytest.mark.parametrize("key", KEYS)


@cache
def bundle_of(name, precision="fp32"):
    return build_bundle(make_run(**MODELS[name]), "x", precision)


@cache
def graph_of(name, precision, key):
    return session(bundle_of(name, precision).graphs[key])


def call(graph, feeds):
    """Run a graph; returns the outputs by name, and the states of the next call."""
    outputs = run_graph(graph, feeds)
    states = next_states(outputs)
    return {name: values for name, values in outputs.items() if not name.startswith("next_")}, states


PLAIN = Sampling()


@dataclass(frozen=True)
class Row:
    """A stream: its prompt, seed and sampling parameters."""

    prompt: list[int]
    seed: int = 0
    sampling: Sampling = PLAIN


def feed_rows(graph, bundle, rows, token, states, at, steps):
    """The inputs of a call of `steps` steps for rows that have taken `at` steps."""
    time = max(steps)
    feeds = decode_feeds(graph, token, states, np.zeros((time, len(rows)), np.float32), Sampling())
    feeds["steps"] = np.array(steps)
    for column, row in enumerate(rows):
        read = [*row.prompt[1:], *[-1] * (at + time)][at : at + time]
        first = len(row.prompt) - 1
        feeds["forced"][:, column] = read
        drawn = uniforms(row.seed, 0, max(at + time - first, 1))
        feeds["uniforms"][:, column] = np.concatenate([np.zeros(first, np.float32), drawn])[at : at + time]
    for name in feeds.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        feeds[name] = np.array([getattr(row.sampling, name) for row in rows], feeds[name].dtype)
    if "logit_bias" in feeds:
        for column, row in enumerate(rows):
            for symbol, value in row.sampling.logit_bias.items():
                feeds["logit_bias"][column, symbol % len(bundle.vocabulary)] = value
    if "window" in feeds:
        feeds["window"] = window_of(feeds["top_k"], len(bundle.vocabulary))
    return feeds


def generate(graph, bundle, rows, cuts):
    """Run calls of `cuts` steps each with all rows in one batch; returns the outputs and the states."""
    token, states = np.array([row.prompt[0] for row in rows]), zero_states(bundle, len(rows))
    pieces, at = [], 0
    for cut in cuts:
        feeds = feed_rows(graph, bundle, rows, token, states, at, [cut] * len(rows))
        outputs, states = call(graph, feeds)
        pieces.append(outputs)
        token, at = outputs["tokens"][-1], at + cut
    return {output: np.concatenate([piece[output] for piece in pieces]) for output in pieces[0]}, states


def assert_same_bits(got, expected, columns, expected_columns):
    """Compare columns of outputs [time, batch, …] and states [layers, batch, hidden], bit by bit."""
    for outputs, others in zip(got, expected, strict=True):
        assert outputs.keys() == others.keys()
        for name, values in outputs.items():
            one, two = (np.ascontiguousarray(part) for part in (values[:, columns], others[name][:, expected_columns]))
            assert one.tobytes() == two.tobytes(), name


PROMPTS = st.lists(st.integers(0, len(LETTERS) - 1), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**64 - 1)
CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
BIASES = st.dictionaries(st.integers(0, 300), st.one_of(st.just(-np.inf), st.integers(-5, 5)), max_size=5)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.0, 1e4]),  # the last makes all masses nearly equal: a long search
    top_k=st.sampled_from([1, 2, 17, 40, 1000, 2**32 - 1]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-3]),
    min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    logit_bias=BIASES,
)
ROWS = st.lists(st.builds(Row, PROMPTS, SEEDS, SAMPLINGS), min_size=1, max_size=40)


@EVERY_PRECISION
@EVERY_MODEL
@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=ROWS, cuts=CUTS, key=st.sampled_from(KEYS), data=st.data())
def test_a_row_is_the_same_alone_and_in_any_batch_and_cut(name, precision, rows, cuts, key, data):
    """Whatever the parameters of the other rows."""
    graph, bundle = graph_of(name, precision, key), bundle_of(name, precision)
    together = generate(graph, bundle, rows, cuts)
    row = data.draw(st.integers(0, len(rows) - 1))
    alone = generate(graph, bundle, [rows[row]], [sum(cuts)])
    assert_same_bits(together, alone, [row], [0])


@EVERY_VARIANT
@EVERY_PRECISION
@EVERY_MODEL
def test_many_rows_alone_and_together(name, precision, key):
    """For all batch sizes at which products are computed differently."""
    graph, bundle = graph_of(name, precision, key), bundle_of(name, precision)
    off = 1000 if key == "decode_top_k" else 0  # which is for rows with a top-k: of all symbols
    samplings = [Sampling(top_k=off), Sampling(0.8, 3), Sampling(1e4, off, 0.6), Sampling(1, off, 1, 1), Sampling(0, 1)]
    rows = [Row([index % 57, 3], index, samplings[index % len(samplings)]) for index in range(67)]
    whole = generate(graph, bundle, rows, [6])
    assert len(set(whole[0]["tokens"].ravel().tolist())) > 5
    for sizes in ([1] * 20, [2, 3, 5, 7, 11, 16, 23]):
        start = 0
        for size in sizes:
            columns = list(range(start, start + size))
            part = generate(graph, bundle, rows[start : start + size], [2, 1, 3] if size > 1 else [6])
            assert_same_bits(part, whole, list(range(size)), columns)
            start += size


@pytest.mark.parametrize("key", ["decode", "decode_logprobs"])
@EVERY_PRECISION
@EVERY_MODEL
def test_rows_stop_at_limits_of_their_own(name, precision, key):
    graph, bundle = graph_of(name, precision, key), bundle_of(name, precision)
    rng = np.random.default_rng(0)
    batch, time = 9, 12
    token, states = rng.integers(50, size=batch), random_states(bundle, batch, rng)
    u = rng.random((time, batch), np.float32)
    feeds = decode_feeds(graph, token, states, u, Sampling(top_k=1000))
    feeds["steps"] = np.arange(batch)  # 0 steps too
    outputs, after = call(graph, feeds)
    assert_same_bits([after], [states], [0], [0])
    for row in range(1, batch):
        alone = {state: part[:, [row]] for state, part in states.items()}
        expected = call(graph, decode_feeds(graph, token[[row]], alone, u[:row, [row]], Sampling(top_k=1000)))
        until = {output: values[:row] for output, values in outputs.items()}
        assert_same_bits((until, after), expected, [row], [0])


@EVERY_PRECISION
@EVERY_MODEL
def test_an_idle_row_keeps_its_state_whatever_the_bits(name, precision):
    """Rows that take no step keep zeros of either sign, denormals and values that no cell would reach."""
    graph, bundle = graph_of(name, precision, "decode"), bundle_of(name, precision)
    odd = np.array([0.0, 1e-42, -1e-42, 1.0, -1.0, 3.5, -1e30, 1e-30], np.float32)
    states = {state: np.resize(odd, part.shape) for state, part in zero_states(bundle, 3).items()}
    feeds = decode_feeds(graph, np.array([1, 2, 3]), states, np.zeros((4, 3), np.float32), Sampling())
    feeds["steps"] = np.array([0, 4, 0])
    _, after = call(graph, feeds)
    assert_same_bits([after], [states], [0, 2], [0, 2])


@pytest.mark.parametrize("key", ["decode_top_p", "decode_top_k"])
@EVERY_PRECISION
@EVERY_MODEL
def test_a_cut_inside_a_call_is_exact_by_replay(name, precision, key):
    """Replaying the first k characters as forced ones, from the state before the call, gives the state after k."""
    graph, bundle = graph_of(name, precision, key), bundle_of(name, precision)
    start = [Row([0], 7, Sampling(1.2, top_k=30))]
    tokens = generate(graph, bundle, start, [20])[0]["tokens"][:, 0].tolist()
    for k in (1, 7, 19):
        expected = generate(graph, bundle, start, [k])
        # Another seed and other parameters: they have no effect on forced characters.
        replayed = generate(graph, bundle, [Row([0, *tokens[:k]], 8, Sampling(0, top_k=1, top_p=0.1))], [k])
        assert_same_bits(replayed, expected, [0], [0])


@EVERY_PRECISION
@EVERY_MODEL
def test_variants_agree_where_filters_are_off(name, precision):
    """To the bit: a stream's text does not depend on the variant that other rows need."""
    bundle = bundle_of(name, precision)
    symbols = len(bundle.vocabulary)
    plain = [Row([row, 1], row, Sampling(temperature=[0.0, 0.5, 1.0, 2.0][row % 4])) for row in range(20)]
    filtered = [Row([row], row, Sampling(0.9, 5, 0.8, 0.1, {2: -np.inf, 3: 4.0})) for row in range(7)]
    expected = generate(graph_of(name, precision, "decode"), bundle, plain, [15])
    for key, top_ks in [
        ("decode_top_p", [0]),
        ("decode_top_k", [symbols, 2**32 - 1]),
        ("decode_logprobs", [0, symbols]),
    ]:
        for top_k in top_ks:
            rows = [Row(row.prompt, row.seed, Sampling(row.sampling.temperature, top_k=top_k)) for row in plain]
            outputs, states = generate(graph_of(name, precision, key), bundle, [*rows, *filtered], [15])
            got = {"tokens": outputs["tokens"]}, states
            assert_same_bits(got, expected, list(range(20)), list(range(20)))


@EVERY_PRECISION
@pytest.mark.parametrize("name", ["gru", "wide", "many"])
def test_filtering_variants_agree_with_one_another(name, precision):
    """Top-p and min-p without top-k, in their own graph and in the one with all filters."""
    bundle = bundle_of(name, precision)
    rows = [
        Row([row], row, Sampling(1.1, 0, [0.9, 0.5, 1.0][row % 3], [0.0, 0.1][row % 2], {5: 2})) for row in range(30)
    ]
    expected, got = (generate(graph_of(name, precision, key), bundle, rows, [12]) for key in KEYS[1::2])
    assert_same_bits(({"tokens": got[0]["tokens"]}, got[1]), expected, list(range(30)), list(range(30)))


# <unk>


@cache
def graphs_with_unknown(cell, symbols, precision="fp32"):
    """A model whose most probable symbol by far is `<unk>`, which is not the first."""
    run = make_run(symbols=(*symbols[:3], UNKNOWN, *symbols[3:]), cell=cell, seed=3)
    run.weights["linear.bias"][3] = 50.0
    bundle = build_bundle(run, "unk", precision)
    return run, bundle, {key: session(bundle.graphs[key]) for key in KEYS}


@EVERY_PRECISION
@pytest.mark.parametrize(("cell", "symbols"), [("gru", LETTERS), ("lstm", MANY), ("rnn", ("a", "b", "c"))])
def test_unknown_is_read_but_never_produced(cell, symbols, precision):
    run, bundle, graphs = graphs_with_unknown(cell, symbols, precision)
    unknown = run.vocabulary.unknown_id
    assert unknown == 3
    bias = {unknown: 20.0, 1: -np.inf}
    for sampling in (
        Sampling(top_k=1),
        Sampling(0, top_k=1000),
        Sampling(30, top_k=1000),
        Sampling(top_p=0.1, top_k=1000),
        Sampling(min_p=1.0, top_k=1000),
        Sampling(logit_bias=bias, top_k=2**32 - 1),
    ):
        for graph in graphs.values():
            u = np.random.default_rng(0).random((40, 8), np.float32)
            u[0] = np.linspace(0, 1 - 2**-24, 8)
            outputs, _ = call(graph, decode_feeds(graph, np.full(8, unknown), zero_states(bundle, 8), u, sampling))
            assert not (outputs["tokens"] == unknown).any()
            if "top_tokens" in outputs and len(run.vocabulary) > ALTERNATIVES:
                assert not (outputs["top_tokens"] == unknown).any()
            elif "top_tokens" in outputs:  # all symbols: `<unk>` is last, with nothing
                assert (outputs["top_tokens"][..., -1] == unknown).all()
                assert (outputs["top_logprobs"][..., -1] == -np.inf).all()


# Log-probabilities


def logits_of(run, prompt, tokens):
    """PyTorch's logits [time, batch, vocab] with which `tokens` [time, batch] were chosen."""
    read = np.concatenate([prompt[None], tokens[:-1]])
    with torch.inference_mode():
        logits, _ = run.build()(torch.from_numpy(np.ascontiguousarray(read.T)))
    return logits.transpose(0, 1).double()


@EVERY_MODEL
def test_log_probabilities_are_the_models(name):
    """For chosen and forced characters, and for the most probable ones."""
    graph, bundle, run = graph_of(name, "fp32", "decode_logprobs"), bundle_of(name), make_run(**MODELS[name])
    rng = np.random.default_rng(4)
    batch, time = 6, 11
    token, u = rng.integers(50, size=batch), rng.random((time, batch), np.float32)
    feeds = decode_feeds(graph, token, zero_states(bundle, batch), u, Sampling(0.7, top_k=1000))
    feeds["forced"][::2, :3] = rng.integers(50, size=feeds["forced"][::2, :3].shape)
    outputs, _ = call(graph, feeds)
    expected = torch.log_softmax(logits_of(run, token, outputs["tokens"]), dim=-1).numpy()
    of_tokens = np.take_along_axis(expected, outputs["tokens"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(outputs["logprobs"], of_tokens, rtol=1e-5, atol=2e-5)

    top = outputs["top_tokens"]
    assert top.shape == outputs["top_logprobs"].shape == (time, batch, ALTERNATIVES)
    of_top = np.take_along_axis(expected, top, axis=-1)
    np.testing.assert_allclose(outputs["top_logprobs"], of_top, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(of_top, -np.sort(-expected, axis=-1)[..., :ALTERNATIVES], rtol=1e-5, atol=2e-5)
    assert (np.diff(outputs["top_logprobs"], axis=-1) <= 0).all()
    assert all(len(set(ids)) == ALTERNATIVES for ids in top.reshape(-1, ALTERNATIVES).tolist())


@EVERY_PRECISION
@pytest.mark.parametrize("name", ["gru", "wide", "many"])
def test_sampling_parameters_do_not_change_log_probabilities(name, precision):
    graph, bundle = graph_of(name, precision, "decode_logprobs"), bundle_of(name, precision)
    prompt = np.random.default_rng(1).integers(50, size=15).tolist()
    plain = generate(graph, bundle, [Row(prompt)], [14])
    samplings = [
        Sampling(0),
        Sampling(9.0),
        Sampling(top_k=1),
        Sampling(top_p=0.01),
        Sampling(min_p=1.0),
        Sampling(0.5, 3, 0.7, 0.1, {prompt[3]: -np.inf, 7: 8.0}),
    ]
    got = generate(graph, bundle, [Row(prompt, 5, sampling) for sampling in samplings], [5, 9])
    for column in range(len(samplings)):
        assert_same_bits(got, plain, [column], [0])


def test_a_forced_unknown_has_the_log_probability_that_the_model_gives_it():
    run, bundle, graphs = graphs_with_unknown("gru", LETTERS)
    unknown, graph = run.vocabulary.unknown_id, graphs["decode_logprobs"]
    feeds = decode_feeds(graph, np.array([5, 9]), zero_states(bundle, 2), np.full((4, 2), 0.5, np.float32), Sampling())
    feeds["forced"][:, 0] = unknown
    outputs, _ = call(graph, feeds)
    assert (outputs["tokens"][:, 0] == unknown).all()
    expected = torch.log_softmax(logits_of(run, np.array([5, 9]), outputs["tokens"]), dim=-1).numpy()
    got = np.take_along_axis(expected, outputs["tokens"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(outputs["logprobs"], got, rtol=1e-5, atol=1e-5)
    assert (outputs["logprobs"][:, 0] > -1e-5).all()  # nearly sure of it
    assert (outputs["top_logprobs"] < -20).all()  # which leaves little to the others


def test_equally_probable_alternatives_are_in_the_order_of_their_ids():
    run = make_run(symbols=MANY[:40])
    run.weights["linear.weight"].zero_()
    run.weights["linear.bias"].copy_(torch.tensor([1.0, 3.0, 2.0, 3.0] * 10))
    bundle = build_bundle(run, "ties")
    graph = session(bundle.graphs["decode_logprobs"])
    u = np.zeros((2, 3), np.float32)
    outputs, _ = call(graph, decode_feeds(graph, np.zeros(3, np.int64), zero_states(bundle, 3), u, Sampling()))
    assert (outputs["top_tokens"] == np.arange(1, 40, 2)).all()
    assert (outputs["tokens"] == 0).all()


@pytest.mark.parametrize(("count", "alternatives"), [(1, 1), (2, 2), (19, 19), (20, 20), (21, 20)])
def test_small_vocabularies_have_fewer_alternatives(count, alternatives):
    bundle = build_bundle(make_run(symbols=MANY[:count]), "small")
    for key in KEYS:
        graph = session(bundle.graphs[key])
        feeds = decode_feeds(
            graph, np.zeros(2, np.int64), zero_states(bundle, 2), np.full((3, 2), 0.4, np.float32), Sampling(top_k=1)
        )
        outputs, _ = call(graph, feeds)
        if key == "decode_logprobs":
            assert outputs["top_tokens"].shape == (3, 2, alternatives)
            assert np.allclose(np.exp(outputs["top_logprobs"]).sum(-1), 1) == (count <= ALTERNATIVES)


# The interface


def shapes(values):
    return {value.name: (value.type, value.shape) for value in values}


@pytest.mark.parametrize("symbols", [LETTERS, MANY], ids=len)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@EVERY_VARIANT
def test_the_graphs_have_the_documented_inputs_and_outputs(cell, symbols, key):
    bundle = build_bundle(make_run(symbols=symbols, cell=cell, layers=2), "x")
    graph, size = session(bundle.graphs[key]), len(symbols)
    ids, floats = "tensor(int64)", "tensor(float)"
    state = (floats, [2, "batch", 32])
    parts = ["h", "c"] if cell == "lstm" else ["h"]
    inputs = {"token": (ids, ["batch"]), "forced": (ids, ["time", "batch"]), "steps": (ids, ["batch"])}
    inputs |= {"uniforms": (floats, ["time", "batch"]), "temperature": (floats, ["batch"])}
    inputs |= {f"state_{part}": state for part in parts}
    if key != "decode":
        inputs |= {"top_p": (floats, ["batch"]), "min_p": (floats, ["batch"]), "logit_bias": (floats, ["batch", size])}
    if key in ("decode_top_k", "decode_logprobs"):
        inputs |= {"top_k": (ids, ["batch"]), "window": (ids, [1])}
    outputs = {"tokens": (ids, ["time", "batch"])} | {f"next_state_{part}": state for part in parts}
    if key == "decode_logprobs":
        outputs |= {"logprobs": (floats, ["time", "batch"]), "top_tokens": (ids, ["time", "batch", 20])}
        outputs |= {"top_logprobs": (floats, ["time", "batch", 20])}
    assert shapes(graph.get_inputs()) == inputs
    assert shapes(graph.get_outputs()) == outputs


@pytest.mark.parametrize("symbols", [57, 150])
def test_every_node_is_used(symbols):
    """Every value that a graph computes is used, in the graph or in one of its bodies."""
    run = make_run(tuple(chr(0x4E00 + index) for index in range(symbols)))

    def names(graph):
        made = {name for node in graph.node for name in node.output if name}
        used = {value.name for value in graph.output} | {name for node in graph.node for name in node.input}
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    inner = names(attribute.g)
                    made, used = made | inner[0], used | inner[1]
        return made, used

    for key, graph in build_bundle(run, "x").graphs.items():
        made, used = names(onnx.load_from_string(graph).graph)
        # Operators of several outputs give them all: Scan and Loop what they carry, TopK the places.
        alone = {name for name in made - used if not ("TopK" in name or "Loop" in name or name == "last_token")}
        assert not alone, key
