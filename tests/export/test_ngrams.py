"""N-gram tables in all graphs: the rows that `rill.ngrams` defines, the context as a state, one table for all."""

import io
import json
from functools import cache

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from random_models import MOLECULES, make_run

from rill.bundle import NGRAMS, VARIANTS, read_bundle
from rill.export.errors import UnsupportedError
from rill.export.graphs import ngrams
from rill.export.graphs.build import build_bundle
from rill.export.parity.compare import decode_feeds, random_states, random_text, run_graph, session, take_rows
from rill.export.parity.float64 import Float64
from rill.export.parity.reference import next_states, pytorch_call
from rill.export.write import is_replaceable, manifest_of, write_bundle
from rill.ngrams import folded_rows, is_exact, row_of
from rill.sampling import Sampling

MANY = tuple(map(chr, range(0x4E00, 0x4E00 + 300)))  # no order beyond 1 has a row for every n-gram
MODELS = {
    "bigrams": {"ngrams": 2},
    "trigrams": {"ngrams": 3, "ngram_rows": 700},
    "all exact": {"symbols": MOLECULES, "ngrams": 3, "cell": "lstm", "layers": 2},
    "several hashed": {"symbols": MANY, "ngrams": 4, "ngram_rows": 97, "cell": "rnn", "embedding": 6},
    "one symbol": {"symbols": ("a",), "ngrams": 8, "reset": "before", "embedding": 3},
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
KEYS = [variant.key for variant in VARIANTS]


@cache
def made(name, precision="fp32"):
    run = make_run(**MODELS[name])
    return run, build_bundle(run, "ngrams", precision)


@EVERY_MODEL
def test_the_references_and_the_graphs_agree(name):
    run, bundle = made(name)
    rng = np.random.default_rng(0)
    states, texts = random_states(bundle, 4, rng), random_text(bundle, (4, 9), rng)
    parameters = {key: values.numpy() for key, values in run.weights.items()}
    with torch.inference_mode():
        expected = pytorch_call(run.build())(texts, states)
    portable = run_graph(session(bundle.graphs["model"]), {"tokens": texts, **states})
    assert portable["next_context"].dtype == np.int64
    for got in (portable, Float64(run.model, parameters)(texts, states)):
        for output, values in expected.items():
            np.testing.assert_allclose(got[output], values, rtol=1e-5, atol=1e-5)
    for key in KEYS:
        graph = session(bundle.graphs[key], bundle)
        feeds = decode_feeds(graph, texts[:, 0], states, np.zeros((9, 4), np.float32), Sampling())
        feeds["forced"] = np.concatenate([texts.T[1:], texts.T[:1]])
        after = next_states(run_graph(graph, feeds))
        for state, values in after.items():
            np.testing.assert_allclose(values, expected[f"next_{state}"], rtol=1e-5, atol=1e-5)
        none = run_graph(graph, feeds | {"steps": np.array([0, 9, 3, 0])})
        for state, values in take_rows(next_states(none), [0, 3]).items():
            assert values.tobytes() == take_rows(states, [0, 3])[state].tobytes()


@EVERY_MODEL
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_have_the_same_bits_in_any_batch_and_any_calls(name, precision):
    _, bundle = made(name, precision)
    rng = np.random.default_rng(1)
    graph = session(bundle.graphs["decode"], bundle)
    batch, cuts = 37, (1, 4, 2, 7)
    states, token = random_states(bundle, batch, rng), rng.integers(len(bundle.vocabulary), size=batch)
    u = rng.random((sum(cuts), batch), np.float32)
    whole = run_graph(graph, decode_feeds(graph, token, states, u, Sampling()))
    ended = np.isin(whole["tokens"], bundle.vocabulary.end_ids).any(axis=0)
    for row in np.flatnonzero(~ended)[::5]:
        at, one, last, made_ = 0, take_rows(states, [row]), token[[row]], []
        for cut in cuts:
            outputs = run_graph(graph, decode_feeds(graph, last, one, u[at : at + cut, [row]], Sampling()))
            one, last, at = next_states(outputs), outputs["tokens"][-1], at + cut
            made_ += outputs["tokens"][:, 0].tolist()
        assert made_ == whole["tokens"][:, row].tolist()
        for state, values in take_rows(next_states(whole), [row]).items():
            assert values.tobytes() == one[state].tobytes()


@EVERY_MODEL
def test_an_empty_text_keeps_the_context(name):
    _, bundle = made(name)
    states = random_states(bundle, 2, np.random.default_rng(0))
    outputs = run_graph(session(bundle.graphs["model"]), {"tokens": np.zeros((2, 0), np.int64), **states})
    assert (outputs["next_context"] == states["context"]).all()


@pytest.mark.parametrize("name", ["trigrams", "several hashed"])
def test_other_runtimes_read_the_portable_graph(name):
    _, bundle = made(name)
    rng = np.random.default_rng(0)
    feeds = {"tokens": random_text(bundle, (2, 5), rng), **random_states(bundle, 2, rng)}
    model = onnx.load_from_string(bundle.graphs["model"])
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 14)]
    expected = run_graph(session(bundle.graphs["model"]), feeds)
    got = onnx.reference.ReferenceEvaluator(model).run(list(expected), feeds)
    for values, right in zip(got, expected.values(), strict=True):
        np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-5)


@EVERY_MODEL
def test_metadata_tells_another_program_what_the_tables_are(name):
    run, bundle = made(name)
    (entry,) = [
        prop.value for prop in onnx.load_from_string(bundle.graphs["model"]).metadata_props if prop.key == "rill.ngrams"
    ]
    rng, symbols = np.random.default_rng(0), len(run.vocabulary)
    for order in json.loads(entry)["orders"]:
        assert order["rows"] == len(run.weights[order["table"]])
        for ngram in rng.integers(symbols, size=(20, order["order"])).tolist():
            total = sum(factor * symbol for factor, symbol in zip(order["multipliers"], ngram[::-1], strict=True))
            assert total % order["rows"] == row_of(tuple(ngram), symbols, run.model.ngram_rows)


@EVERY_MODEL
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_tables_are_in_the_bundle_once(name, precision, tmp_path):
    run, bundle = made(name, precision)
    folder = tmp_path / "ngrams"
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
    assert read_bundle(folder) == bundle
    assert is_replaceable(folder)
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 3
    values = np.load(io.BytesIO(bundle.ngrams), allow_pickle=False)
    assert values.shape == bundle.ngrams_shape == np.asarray(bundle.ngrams_values).shape
    assert len(values) == folded_rows(len(run.vocabulary), run.model.ngrams, run.model.ngram_rows)
    assert (values == np.asarray(bundle.ngrams_values)).all()
    for key in KEYS:
        graph = onnx.load_from_string(bundle.graphs[key]).graph
        assert NGRAMS in {value.name for value in graph.input}
        assert len(bundle.graphs[key]) < 400_000


def test_a_model_of_the_published_size_stays_below_60_megabytes():
    run = make_run(tuple(map(chr, range(0x100, 0x100 + 65))), hidden=256, ngrams=3)
    bundle = build_bundle(run, "x")
    assert len(bundle.ngrams) + sum(map(len, bundle.graphs.values())) < 60e6
    assert is_exact(2, 65)


def test_tables_too_large_for_a_bundle_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(ngrams, "MAX_NGRAMS_BYTES", 100_000)
    with pytest.raises(UnsupportedError, match="take 1099104 bytes, more than 100000; train"):
        build_bundle(make_run(ngrams=2, hidden=8, symbols=tuple(map(chr, range(0x100, 0x100 + 107)))), "x")
