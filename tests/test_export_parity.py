"""The exported graphs against PyTorch, with batches and times other than the exporter's own check uses."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from conftest import LETTERS, make_run

from export.compare import ParityError, decode_feeds, session
from export.export import build_bundle
from export.sampling import Sampling
from export.verify import verify

SHAPES = [
    {"layers": 1, "hidden": 32},
    {"layers": 1, "hidden": 17, "bias": False},
    {"layers": 2, "hidden": 24, "embedding": 8},
    {"layers": 3, "hidden": 32, "embedding": 5, "bias": False, "dropout": 0.3},
    {"layers": 1, "hidden": 256},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graphs_do_what_pytorch_does(shape):
    run = make_run(**shape)
    model, bundle = run.build(), build_bundle(run, "tiny")
    portable = session(bundle.graphs["model"])
    decode = session(bundle.graphs["decode"])
    rng = np.random.default_rng(5)
    for batch, time in [(1, 1), (1, 64), (3, 7), (64, 2), (5, 129)]:
        state = rng.uniform(-1, 1, (run.model.layers, batch, run.model.hidden)).astype(np.float32)
        expected_state, decode_state = torch.from_numpy(state), state
        for _ in range(3):
            tokens = rng.integers(len(LETTERS), size=(batch, time))
            with torch.inference_mode():
                expected, (expected_state,) = model(torch.from_numpy(tokens), (expected_state,))
            logits, state = portable.run(None, {"tokens": tokens, "state_h": state})
            feeds = decode_feeds(decode, tokens[:, 0], decode_state, np.zeros((time, batch), np.float32), Sampling())
            feeds["forced"][:-1] = tokens.T[1:]
            emitted, decode_state = decode.run(None, feeds)
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(state, expected_state, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(decode_state, expected_state, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(emitted[:-1], tokens.T[1:])


@pytest.mark.parametrize("shape", [{}, {"layers": 2, "embedding": 8, "symbols": ("<unk>", *LETTERS)}], ids=str)
def test_verification_passes_and_counts(shape):
    run = make_run(**shape)
    parity = verify(build_bundle(run, "tiny"), run.build())
    assert parity.worst_difference < 1e-5
    assert (parity.greedy_characters, parity.sampled_characters) == (2000, 2000)
    assert parity.excused_characters <= 3
    assert parity.excused_rows == 0


def _with_changed_constant(graph: bytes, pick, change) -> bytes:
    model = onnx.load_from_string(graph)
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.name == "body")]
    tensor = next(t for g in graphs for t in g.initializer if pick(t))
    array = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(array), tensor.name))
    return model.SerializeToString()


@pytest.mark.parametrize("key", ["model", "decode", "decode_filters"])
def test_verification_catches_a_wrong_weight(tiny, tiny_run, key):
    def nudge(array):
        array.flat[7] += 0.01
        return array

    changed = _with_changed_constant(tiny.graphs[key], lambda t: len(t.dims) >= 2 and 32 in t.dims, nudge)
    with pytest.raises(ParityError):
        verify(replace(tiny, graphs={**tiny.graphs, key: changed}), tiny_run.build())


def test_verification_catches_wrong_output_weights_of_the_serving_graph(tiny, tiny_run):
    """The serving graph shows no logits: its output layer is judged by its characters."""
    shape = [32, len(LETTERS)]
    changed = _with_changed_constant(
        tiny.graphs["decode"], lambda t: list(t.dims) == shape and t.name.startswith("step."), lambda a: a * 1.01
    )
    with pytest.raises(ParityError, match="chose"):
        verify(replace(tiny, graphs={**tiny.graphs, "decode": changed}), tiny_run.build())


def _reverse(model):
    gru = next(node for node in model.graph.node if node.op_type == "GRU")
    gru.attribute.append(onnx.helper.make_attribute("direction", "reverse"))


def _next_rows_state(model):
    """Every row ends in its neighbour's state."""
    for node in model.graph.node:
        node.output[:] = ["right" if name == "next_state_h" else name for name in node.output]
    for name, value in {"zero": 0, "one": 1, "end": 2**31}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Slice", ["right", "one", "end", "one"], ["rest"]),
            onnx.helper.make_node("Slice", ["right", "zero", "one", "one"], ["first"]),
            onnx.helper.make_node("Concat", ["rest", "first"], ["next_state_h"], axis=1),
        ]
    )


def _body(model):
    scan = next(node for node in model.graph.node if node.op_type == "Scan")
    return next(attribute.g for attribute in scan.attribute if attribute.name == "body")


def _without_filter(index):
    def change(model):
        threshold = next(node for node in _body(model).node if node.op_type == "Max")
        del threshold.input[index]

    return change


def _subtracted_bias(model):
    next(node for node in _body(model).node if "logit_bias" in node.input).op_type = "Sub"


def _one_step_more(model):
    next(node for node in model.graph.node if "steps" in node.input).op_type = "LessOrEqual"


def _greater_or_equal(model):
    next(node for node in _body(model).node if node.op_type == "Greater").op_type = "GreaterOrEqual"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("model", _reverse),
        ("model", _next_rows_state),
        ("decode", _next_rows_state),
        ("decode", _one_step_more),
        ("decode", _greater_or_equal),
        ("decode_filters", _without_filter(0)),
        ("decode_filters", _without_filter(1)),
        ("decode_filters", _without_filter(2)),
        ("decode_filters", _subtracted_bias),
    ],
)
def test_verification_catches_a_wrong_graph(tiny, tiny_run, key, change):
    model = onnx.load_from_string(tiny.graphs[key])
    change(model)
    with pytest.raises(ParityError):
        verify(replace(tiny, graphs={**tiny.graphs, key: model.SerializeToString()}), tiny_run.build())


def test_portable_graph_describes_itself(tiny):
    model = onnx.load_from_string(tiny.graphs["model"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [value.name for value in model.graph.input] == ["tokens", "state_h"]
    assert [value.name for value in model.graph.output] == ["logits", "next_state_h"]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        "time",
        len(LETTERS),
    ]
    assert {prop.key for prop in model.metadata_props} == {"rill.model", "rill.states", "rill.vocabulary"}
