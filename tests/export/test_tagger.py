"""Taggers as bundles: exported by the command, verified, used without Rill, refused by the server."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graph_parts import initializers, nodes
from random_models import make_run, save_run

from rill.bundle import MANIFEST, BundleError, read_bundle
from rill.export.command import main as export
from rill.export.errors import ParityError
from rill.export.graphs.build import build_bundle
from rill.export.parity.teacher_forced import Compared
from rill.export.parity.verify import verify
from rill.export.write import manifest_of, write_bundle
from rill.train.command import main as train
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.model import CharacterModel
from rill.train.record.run import Run, load_run
from rill.train.text.subtraction import subtraction
from rill.vocabulary import Vocabulary

SYMBOLS, LABELS = ("0", "1", "two", "three", "</s>"), ("noun", "verb", "other")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A bidirectional tagger trained briefly by the real command."""
    folder = tmp_path_factory.mktemp("runs") / "subtraction"
    options = "--task tag --corpus subtraction:3 --hidden 4 --no-bias --steps 20 --bidirectional --device cpu"
    assert train([*options.split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def bundle_folder(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles")
    assert export([str(run_folder), "--out", str(out)]) == 0
    return out / "subtraction"


def tagger(scale=1.0, **config):
    """A tagger in memory with random weights; scaled beyond 1, a recurrent network tends to be unstable."""
    torch.manual_seed(5)
    model_config = ModelConfig(task="tag", **{"hidden": 6, **config})
    model = CharacterModel(model_config, len(SYMBOLS), len(LABELS))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(scale if "weight_hh" in name else 1)
    vocabulary = Vocabulary(SYMBOLS, tokenizer="sequences")
    return Run(Path("x"), model_config, TrainingConfig(steps=1), vocabulary, LABELS, model.state_dict())


def test_the_command_exports_the_portable_graph_alone(run_folder, bundle_folder, capsys):
    run, bundle = load_run(run_folder), read_bundle(bundle_folder)
    assert sorted(path.name for path in bundle_folder.iterdir()) == [MANIFEST, "model.onnx"]
    assert not bundle.streamable
    assert (bundle.vocabulary, bundle.labels) == (run.vocabulary, run.labels)

    manifest = json.loads((bundle_folder / MANIFEST).read_text())
    assert set(manifest["graphs"]) == {"model"}
    assert (manifest["vocabulary"], manifest["labels"]) == (list(run.vocabulary.symbols), list(run.labels))
    assert manifest["states"] == [{"name": "state_h", "next": "next_state_h", "shape": [2, "batch", 4]}]
    parity = manifest["parity"]
    assert 0 < parity["logits_difference"] < 1e-5
    assert 0 < parity["state_difference"] < 1e-5
    assert parity["rows"] > 100
    assert parity["decode_state_difference"] is None
    assert parity["greedy_characters"] == 0

    assert export([str(run_folder), "--out", str(bundle_folder.parent)]) == 0
    printed = capsys.readouterr().out
    assert "unchanged" in printed
    assert "characters" not in printed


def test_onnx_runtime_alone_labels_as_pytorch_does(run_folder, bundle_folder):
    """A program without Rill finds everything it needs in the graph's file."""
    graph = ort.InferenceSession(bundle_folder / "model.onnx", providers=["CPUExecutionProvider"])
    about = {key: json.loads(text) for key, text in graph.get_modelmeta().custom_metadata_map.items()}
    assert set(about) == {"rill.model", "rill.states", "rill.vocabulary", "rill.labels"}
    sequences = subtraction("subtraction:3")
    tokens = np.array([[about["rill.vocabulary"].index(symbol) for symbol in symbols] for symbols, _ in sequences])
    (state,) = about["rill.states"]
    start = np.zeros([len(tokens) if axis == "batch" else axis for axis in state["shape"]], np.float32)
    logits, _ = graph.run(None, {"tokens": tokens, state["name"]: start})
    labels = [[about["rill.labels"][index] for index in row] for row in logits.argmax(-1)]

    run = load_run(run_folder)
    ids = torch.tensor([run.vocabulary.encode(symbols) for symbols, _ in sequences])
    with torch.inference_mode():
        expected, _ = run.build()(ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert labels == [[run.labels[index] for index in row] for row in expected.argmax(-1).tolist()]
    assert len({label for row in labels for label in row}) == 2


def test_a_server_refuses_it_in_one_sentence(bundle_folder, run_command):
    done = run_command("rill.serve", bundle_folder, "--device", "cpu")
    assert done.returncode == 2
    assert done.stdout == ""
    sentence = "bundle 'subtraction' is a tagger: it labels symbols, has no decode graph and cannot stream text"
    assert done.stderr == f"error: {sentence}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("labels"), "lacks 'labels'"),
        (lambda m: m["labels"].reverse(), "model_id does not match the graphs, the vocabulary and the labels"),
        (lambda m: m.update(labels=[]), "model_id does not match"),
        (lambda m: m.update(labels="01"), "'labels' must be a list of strings"),
        (lambda m: m["labels"].append(7), "'labels' must be a list of strings"),
        (lambda m: m["vocabulary"].append(7), "'vocabulary' must be a list of strings"),
        (lambda m: m["vocabulary"].append("two"), "repeats a symbol"),
        (lambda m: m["model"].update(task="generate"), "'two' is not one character"),
        (lambda m: m["model"].pop("task"), "lacks 'task'"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_sentence(tmp_path, change, message):
    bundle = build_bundle(tagger(), "words")
    manifest = manifest_of(bundle, {}, {})
    write_bundle(bundle, manifest, tmp_path / "words")
    assert read_bundle(tmp_path / "words") == bundle
    change(manifest)
    (tmp_path / "words" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(tmp_path / "words")
    assert "\n" not in str(caught.value)


def test_other_labels_are_another_model():
    run = tagger()
    ids = {build_bundle(replace(run, labels=labels), "x").model_id for labels in (LABELS, LABELS[::-1])}
    assert len(ids) == 2


KINDS = [
    {"cell": "gru", "layers": 2, "residual": True},
    {"cell": "gru", "reset": "before", "bias": False},
    {"cell": "lstm", "layers": 2, "embedding": 3},
    {"cell": "rnn", "layers": 3, "residual": True},
]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_verification_passes_and_counts(kind, bidirectional):
    run = tagger(bidirectional=bidirectional, **kind)
    parity = verify(build_bundle(run, "x"), run)
    assert parity.worst_difference < 2e-6
    assert parity.rows > 100
    assert (parity.excused_rows, parity.choices) == (0, 0)


UNSTABLE = [{"cell": "rnn", "scale": 7.0}, {"cell": "lstm", "scale": 16.0}]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", UNSTABLE, ids=str)
def test_rows_along_another_rounding_are_excused_and_counted(kind, bidirectional):
    run = tagger(bidirectional=bidirectional, **kind)
    parity = verify(build_bundle(run, "x"), run)
    assert 0 < parity.excused_rows < parity.rows / 2
    assert parity.worst_difference < 1e-4


def test_the_worst_state_is_that_of_all_parts():
    assert Compared({"logits": 3.0, "next_state_h": 1.0, "next_state_c": 2.0}, rows=1, excused=0).worst_state == 2.0


def _initializer(change, suffix):
    def apply(model):
        tensor = next(tensor for tensor in initializers(model) if tensor.name.endswith(suffix))
        array = onnx.numpy_helper.to_array(tensor).copy()
        change(array)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return apply


def _nudge(array):
    array.flat[-1] += 1e-3


def _swap_directions(array):
    array[:] = array[::-1].copy()


def _swap_states(model):
    swapped = {"next_state_h": "next_state_c", "next_state_c": "next_state_h"}
    for node in model.graph.node:
        node.output[:] = [swapped.get(name, name) for name in node.output]


def _without_sum(model):
    # The last sum becomes the last layer's output alone.
    add = [node for node in nodes(model) if node.op_type == "Add"][-2]
    add.op_type, add.input[:] = "Identity", [add.input[1]]


def _attribute(name, value):
    def apply(model):
        node = next(node for node in nodes(model) if node.op_type in ("GRU", "LSTM", "RNN"))
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return apply


MUTATIONS = [
    ({"cell": "lstm", "bidirectional": True}, _initializer(_nudge, "weight_hh_l0")),
    ({"cell": "lstm", "bidirectional": True}, _initializer(_nudge, "linear.bias")),
    ({"cell": "lstm", "bidirectional": True}, _initializer(_swap_directions, "weight_ih_l0")),
    ({"cell": "lstm", "bidirectional": True}, _swap_states),
    ({"cell": "lstm"}, _swap_states),
    ({"cell": "lstm"}, _initializer(_nudge, "bias_l0")),
    ({"cell": "gru", "bidirectional": True, "layers": 3, "residual": True}, _without_sum),
    ({"cell": "gru", "reset": "before"}, _attribute("linear_before_reset", 1)),
    ({"cell": "rnn", "bidirectional": True}, _attribute("activations", ["Tanh", "Sigmoid"])),
    ({"cell": "rnn", "scale": 7.0, "bidirectional": True}, _initializer(_nudge, "linear.bias")),
]


@pytest.mark.parametrize(("kind", "change"), MUTATIONS)
def test_verification_catches_a_wrong_graph(kind, change):
    run = tagger(**kind)
    bundle = build_bundle(run, "x")
    model = onnx.load_from_string(bundle.graphs["model"])
    change(model)
    with pytest.raises(ParityError, match=r"model\.onnx: .* differs from PyTorch's by .* more than rounding explains"):
        verify(replace(bundle, graphs={"model": model.SerializeToString()}), run)


def test_a_tagger_is_exported_beside_a_generator(tmp_path, run_folder, unverified):
    lstm = save_run(make_run(cell="lstm"), tmp_path / "lstm")
    report, out = tmp_path / "report.json", tmp_path / "out"
    assert export([str(lstm), str(run_folder), "--out", str(out), "--json", str(report)]) == 0
    assert [row["status"] for row in json.loads(report.read_text())] == ["ok", "ok"]
    assert len(list((out / "lstm").glob("*.onnx"))) == 7
    assert len(list((out / "subtraction").glob("*.onnx"))) == 1


def test_int8_is_refused_in_one_sentence(tmp_path, run_folder, capsys):
    """The same run in fp32, requested in the same call, is exported."""
    assert export([str(run_folder), "--out", str(tmp_path), "--precision", "int8", "fp32"]) == 1
    errors = capsys.readouterr().err
    assert "int8 applies to serving graphs, and a tagger has none; export it as fp32" in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["subtraction"]
