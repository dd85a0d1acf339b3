"""The parity matrix: a few configurations in which every two values of any two axes meet, and the command itself."""

import json
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch

import rill.export.matrix.__main__
import rill.export.matrix.check
from rill.export.graphs.build import build_bundle
from rill.export.matrix.__main__ import QUICK_CHARACTERS, main
from rill.export.matrix.check import Difference, NetworkJob, check
from rill.export.matrix.models import (
    BATCHES,
    BIASES,
    CELLS,
    DEPTHS,
    EMBEDDINGS,
    HIDDEN,
    NGRAMS,
    SYMBOLS,
    TIMES,
    WIDER,
    Configuration,
    Network,
    all_configurations,
    pairwise,
    quick_configurations,
    random_run,
)
from rill.export.parity.float64 import Float64
from rill.export.parity.reference import pytorch_call
from rill.train.nets.sample import generate

SMALL = Configuration(Network("gru", (1, False), 32, 0, True, "fp32"), 3, 7)
SMALL_INT8 = SMALL._replace(network=SMALL.network._replace(precision="int8"))


def checked(configuration):
    (result,) = check(NetworkJob(configuration.network, [configuration]), lambda step: None, QUICK_CHARACTERS)
    return result


def _pairs(rows):
    """Every two values that meet, with their axes."""
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1, 2), (2, 2, 2, 2), (5, 4, 3, 2), (3, 3, 3, 3, 3), (1, 1)], ids=str)
def test_pairwise_rows_cover_every_pair(sizes):
    axes = [[f"{axis}-{value}" for value in range(size)] for axis, size in enumerate(sizes)]
    rows = pairwise(axes)
    assert _pairs(rows) == _pairs(product(*axes))
    assert len(set(rows)) == len(rows) <= max(a * b for a, b in combinations(sizes, 2)) * 2
    assert rows == pairwise(axes)


def test_quick_configurations_cover_every_pair_of_any_two_axes():
    axes = [CELLS, DEPTHS, (HIDDEN, WIDER[0]), EMBEDDINGS, BIASES, ("fp32", "int8"), NGRAMS, BATCHES, TIMES]
    quick = quick_configurations()
    assert _pairs((*each.network, each.batch, each.time) for each in quick) == _pairs(product(*axes))
    assert len(quick) <= 24


def test_the_whole_matrix_is_complete():
    whole = all_configurations()
    assert len(set(whole)) == len(whole)
    axes = (CELLS, DEPTHS, (HIDDEN,), EMBEDDINGS, BIASES, ("fp32", "int8"))
    narrow = {Configuration(Network(*values), *shape) for values in product(*axes) for shape in product(BATCHES, TIMES)}
    assert narrow <= set(whole)
    others = {each.network for each in set(whole) - narrow}
    assert {each.hidden for each in others if each.ngrams == 1} == set(WIDER)
    assert {each.ngrams for each in others} == set(NGRAMS)


@pytest.mark.parametrize("configuration", quick_configurations(), ids=str)
def test_graphs_match_the_model(configuration):
    result = checked(configuration)
    assert result.failures == []
    assert result.characters >= QUICK_CHARACTERS
    assert result.excused_characters <= 2
    assert result.excused_steps <= 2
    serving = {"PyTorch", "float64"} if configuration.network.precision == "fp32" else {"emulation"}
    assert {output: set(found) for output, found in result.differences.items()} == {
        "logits": {"PyTorch", "float64"},
        "states": {"PyTorch", "float64"},
        "serving states": serving,
        "logprobs": serving,
    }


@pytest.mark.parametrize("network", sorted({each.network for each in quick_configurations()}), ids=str)
def test_the_float64_reference_matches_pytorch_in_float64(network):
    run = random_run(network.config, seed=1)
    model, rng = run.build().double(), np.random.default_rng(2)
    tokens = rng.integers(len(SYMBOLS), size=(3, 9))
    shape = (network.config.layers, 3, network.config.hidden)
    states = {f"state_{part}": rng.uniform(-1, 1, shape) for part in network.config.state_parts}
    if network.ngrams > 1:
        states["context"] = rng.integers(len(SYMBOLS), size=(3, network.ngrams - 1))
    with torch.inference_mode():
        expected = pytorch_call(model)(tokens, states)
    got = Float64(run.model, {name: values.numpy() for name, values in run.weights.items()})(tokens, states)
    for output, values in expected.items():
        np.testing.assert_allclose(got[output], values, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("cell", "depth"), list(product(CELLS, DEPTHS)), ids=str)
def test_texts_of_random_models_are_varied(cell, depth):
    run = random_run(Network(cell, depth, HIDDEN, 0, True, "fp32").config)
    texts = [generate(run.build(), run.vocabulary, start, 20, temperature=0) for start in "abcdefA\n"]
    assert len(set("".join(texts))) >= 10
    assert len({text[-10:] for text in texts}) >= 4


def _with_one_weight_changed(monkeypatch, key, by, parameter="rnn.weight_hh_l0"):
    """Replace the graph `key` of each bundle by that of a model with one weight changed."""

    def build(run, name, precision):
        bundle, weights = build_bundle(run, name, precision), {k: v.clone() for k, v in run.weights.items()}
        weights[parameter][3, 5] += by
        changed = build_bundle(replace(run, weights=weights), name, precision)
        return replace(bundle, graphs={**bundle.graphs, key: changed.graphs[key]})

    monkeypatch.setattr(rill.export.matrix.check, "build_bundle", build)


@pytest.mark.parametrize(
    ("key", "outputs"),
    [
        ("model", {"logits", "states"}),
        ("decode", {"serving states"}),
        ("decode_logprobs", {"serving states", "logprobs"}),
    ],
)
def test_a_wrong_weight_is_found(monkeypatch, key, outputs):
    _with_one_weight_changed(monkeypatch, key, by=1e-2)
    result = checked(SMALL)
    assert {failure.split(" differ ")[0] for failure in result.failures} == outputs
    assert all(not result.differences[output][name].share <= 1 for output in outputs for name in ("PyTorch", "float64"))


@pytest.mark.parametrize("key", ["model", "decode", "decode_logprobs"])
def test_a_wrong_weight_is_found_in_int8(monkeypatch, key):
    _with_one_weight_changed(monkeypatch, key, by=0.5)
    result = checked(SMALL_INT8)
    assert result.failures


def test_a_wrong_text_is_found_and_the_rest_of_it_compared(monkeypatch):
    _with_one_weight_changed(monkeypatch, "decode", by=3, parameter="linear.weight")
    wrong = checked(SMALL)
    assert wrong.wrong_characters > 1
    assert f"{wrong.wrong_characters} greedy characters are wrong" in wrong.failures
    monkeypatch.setattr(rill.export.matrix.check, "NEAR", np.inf)
    excused = checked(SMALL)
    assert (excused.wrong_characters, excused.excused_characters) == (0, wrong.wrong_characters)
    assert excused.characters < QUICK_CHARACTERS  # what a row wrote after such a choice, in the same call, is not


def test_nan_differs_infinitely():
    zeros, bad = np.zeros(2), np.array([0, np.nan])
    assert Difference.of(bad, zeros) == Difference.of(zeros, bad) == Difference(np.inf, np.inf)
    assert Difference.of(np.array([1.00001, 0]), np.array([1.0, 0])).share == pytest.approx(0.5)


def test_the_command_lists_all_failures_and_continues(monkeypatch, capsys, tmp_path):
    def build(run, name, precision):
        if precision == "int8":
            raise ValueError("no such thing")
        return build_bundle(run, name, precision)

    monkeypatch.setattr(rill.export.matrix.check, "build_bundle", build)
    monkeypatch.setattr(
        rill.export.matrix.__main__, "quick_configurations", lambda: [SMALL_INT8, SMALL_INT8._replace(time=1), SMALL]
    )
    path = tmp_path / "report.json"
    assert main(["--quick", "--json", str(path)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED: ") == printed.count("ValueError: no such thing") == 2
    assert f"worst configuration: {SMALL}\n" in printed
    assert "3 configurations of 2 models" in printed
    assert "2 failed" in printed
    report = json.loads(path.read_text())
    assert [bool(each["failures"]) for each in report["configurations"]] == [True, True, False]
    assert report["configurations"][2]["differences"]["logits"]["float64"]["share"] <= 1


def test_the_command_in_processes_finds_the_same(monkeypatch, tmp_path):
    other = SMALL._replace(network=SMALL.network._replace(cell="rnn"))
    configurations = [SMALL, SMALL._replace(batch=1), other]
    monkeypatch.setattr(rill.export.matrix.__main__, "quick_configurations", lambda: configurations)
    reports = []
    for jobs in (1, 2):
        path = tmp_path / f"{jobs}.json"
        assert main(["--quick", "--jobs", str(jobs), "--json", str(path)]) == 0
        reports.append(json.loads(path.read_text())["configurations"])
    for each in [*reports[0], *reports[1]]:
        del each["seconds"]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--json", "no-such-folder/report.json"], ["--json", "."]])
def test_wrong_usage_is_refused(arguments, capsys):
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err
