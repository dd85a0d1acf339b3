"""Texts that must match: the automata in the serving graphs, and the variants that have them."""

import json
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from random_models import MOLECULES, make_run

from rill.bundle import CONSTRAINED_VARIANTS, DECODE, DECODE_LOGPROBS, read_bundle
from rill.export.errors import ParityError
from rill.export.graphs.build import build_bundle
from rill.export.parity.choices import Graph
from rill.export.parity.compare import decode_feeds, random_states, run_graph, session, take_rows
from rill.export.parity.constrained import constrained, random_tables
from rill.export.parity.reference import PyTorch, next_states
from rill.export.write import manifest_of, write_bundle
from rill.sampling import Sampling

MODELS = {
    "gru": {},
    "lstm of molecules": {"symbols": MOLECULES, "cell": "lstm", "layers": 2},
    "trigrams": {"ngrams": 3, "ngram_rows": 700},
    "molecules with trigrams": {"symbols": MOLECULES, "ngrams": 3},
    "rnn": {"cell": "rnn", "embedding": 5},
    "reset before": {"reset": "before"},
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "int8"])
SHORT, LONG = (variant.key for variant in CONSTRAINED_VARIANTS)


@cache
def made(name, precision="fp32"):
    return build_bundle(make_run(**MODELS[name]), "constrained", precision)


@cache
def graph(name, key, precision="fp32"):
    bundle = made(name, precision)
    return session({**bundle.graphs, **bundle.constrained}[key], bundle)


def feeds_of(which, token, states, uniforms, automaton, tabled, sampling=None):
    feeds = decode_feeds(which, token, states, uniforms, sampling or Sampling())
    feeds.pop("forced", None)
    return feeds | tabled | {"automaton": automaton}


def begin(name, rng, batch, steps, precision="fp32"):
    bundle = made(name, precision)
    states = random_states(bundle, batch, rng)
    return bundle, rng.integers(len(bundle.vocabulary), size=batch), states, rng.random((steps, batch), np.float32)


@EVERY_MODEL
@PRECISIONS
def test_a_row_that_is_free_has_the_bits_of_the_plain_graph(name, precision):
    rng = np.random.default_rng(0)
    bundle, token, states, u = begin(name, rng, 7, 12, precision)
    for key, plain in ((SHORT, DECODE.key), (LONG, DECODE_LOGPROBS.key)):
        free = feeds_of(
            graph(name, key, precision), token, states, u, np.zeros(7, np.int64), random_tables(bundle.vocabulary, rng)
        )
        got = run_graph(graph(name, key, precision), free)
        expected = run_graph(
            graph(name, plain, precision), decode_feeds(graph(name, plain, precision), token, states, u, Sampling())
        )
        if bundle.vocabulary.ends:  # which end a text in the plain graph only
            rows = np.flatnonzero(~np.isin(expected["tokens"], bundle.vocabulary.end_ids).any(axis=0))
            assert rows.size
        else:
            rows = np.arange(7)
        assert (got["automata"] == 0).all()
        for output, values in expected.items():
            where = (slice(None), rows) if output != "next_context" else rows
            assert values[where].tobytes() == got[output][where].tobytes(), output


def walked(name, precision, key, token, states, u, automaton, tabled, sampling=None):
    """The text of each row, step by step by calls of one step, each from the outputs of the last."""
    which, texts, ends = graph(name, key, precision), [], []
    for row in range(len(token)):
        last, state, here, text = token[[row]], take_rows(states, [row]), automaton[[row]], []
        for step in range(len(u)):
            if not tabled["continues"][here[0], 0]:
                break
            out = run_graph(which, feeds_of(which, last, state, u[[step]][:, [row]], here, tabled, sampling))
            here, before, state = out["automata"][-1], state, next_states(out)
            if not tabled["reads"][here[0], 0]:
                for part, values in state.items():
                    assert values.tobytes() == before[part].tobytes()
                break
            last = out["tokens"][-1]
            text.append(int(last[0]))
        texts.append(text)
        ends.append((int(here[0]), state))
    return texts, ends


@EVERY_MODEL
@PRECISIONS
def test_texts_follow_their_automata_in_any_batch_and_any_calls(name, precision):
    rng = np.random.default_rng(1)
    bundle, token, states, u = begin(name, rng, 13, 9, precision)
    tabled = random_tables(bundle.vocabulary, rng, ends=0.05, terminated=0.2)
    automaton = rng.integers(1, len(tabled["reads"]), size=13)
    whole = run_graph(
        graph(name, SHORT, precision), feeds_of(graph(name, SHORT, precision), token, states, u, automaton, tabled)
    )
    texts, ends = walked(name, precision, SHORT, token, states, u, automaton, tabled)
    stopped = 0
    for row, (text, (end, state)) in enumerate(zip(texts, ends, strict=True)):
        assert whole["tokens"][: len(text), row].tolist() == text
        here = int(automaton[row])
        for symbol in text:
            assert tabled["allowed"][here, symbol] == 0
            here = int(tabled["transitions"][here * len(bundle.vocabulary) + symbol])
            assert tabled["reads"][here, 0]
        stopped += len(text) < 9
        if len(text) < 9 and not tabled["reads"][end, 0]:
            assert whole["automata"][len(text), row] == end
        elif text:
            assert whole["automata"][len(text) - 1, row] == end == here
        for part, values in take_rows(next_states(whole), [row]).items():
            assert values.tobytes() == state[part].tobytes()
    assert 0 < stopped < 13


@PRECISIONS
def test_filters_and_log_probabilities_are_those_of_the_model_itself(precision):
    name, rng = "gru", np.random.default_rng(2)
    bundle, token, states, u = begin(name, rng, 5, 1, precision)
    tabled = random_tables(bundle.vocabulary, rng, ends=0, terminated=0)
    automaton = np.arange(1, 6)
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.5, logit_bias={0: 2.0}), Sampling(temperature=0)):
        which = graph(name, LONG, precision)
        got = run_graph(which, feeds_of(which, token, states, u, automaton, tabled, sampling))
        plain = graph(name, DECODE_LOGPROBS.key, precision)
        feeds = decode_feeds(plain, token, states, u, sampling) | {"forced": got["tokens"]}
        expected = run_graph(plain, feeds)
        for output in ("logprobs", "top_tokens", "top_logprobs"):
            assert got[output].tobytes() == expected[output].tobytes()


@EVERY_MODEL
def test_the_variants_are_apart_from_the_other_graphs(name, tmp_path):
    bundle = made(name)
    folder = tmp_path / "constrained"
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
    assert read_bundle(folder) == bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not bundle.constrained.keys() & manifest["graphs"].keys()
    del manifest["constrained"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    earlier = read_bundle(folder)
    assert earlier.constrained == {}
    assert earlier.model_id == bundle.model_id
    for key in (SHORT, LONG):
        names = {value.name for value in onnx.load_from_string(bundle.constrained[key]).graph.input}
        assert {"automaton", "allowed", "transitions", "continues", "reads"} <= names
        assert "forced" not in names


@pytest.mark.parametrize("key", [SHORT, LONG])
def test_a_wrong_graph_is_noticed(key):
    run = make_run(**MODELS["gru"])
    reference, bundle = PyTorch(run.build()), made("gru")
    plain = Graph("plain", graph("gru", DECODE_LOGPROBS.key if key == LONG else DECODE.key), bundle, reference)
    model = onnx.load_from_string(bundle.constrained[key])
    with torch.inference_mode():
        constrained(Graph("right", graph("gru", key), bundle, reference), plain, np.random.default_rng(0))
        for name in ("continues", "reads", "allowed", "transitions"):
            wrong = onnx.ModelProto()
            wrong.CopyFrom(model)
            (scan,) = [node for node in wrong.graph.node if node.op_type == "Scan"]
            (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
            (node,) = [node for node in body.node if node.input and node.input[0] == name]
            del node.input[1]
            node.input.append("step.automaton")  # the state before the step, or for `allowed` the right one
            if name == "allowed":
                node.input[1] = "zero"
                wrong.graph.initializer.append(onnx.helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0]))
            broken = Graph("wrong", session(wrong.SerializeToString(), bundle), bundle, reference)
            with pytest.raises(ParityError):
                constrained(broken, plain, np.random.default_rng(0))
