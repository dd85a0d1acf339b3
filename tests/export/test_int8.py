"""int8: how values are rounded, that the graphs compute exactly that, and that verification notices if they do not."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from graph_parts import body_of, initializers, nodes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_models import LETTERS, make_run

from rill.bundle import FILES, VARIANTS
from rill.export.errors import ParityError
from rill.export.graphs.arithmetic import STATE_STEPS, TABLE_STEPS, WEIGHT_STEPS, ZERO_POINT, Quantized, rounded
from rill.export.graphs.build import build_bundle
from rill.export.graphs.weights import weights_of
from rill.export.parity.compare import session
from rill.export.parity.reference import Int8, round_weights
from rill.export.parity.teacher_forced import serving_call, step_by_step
from rill.export.parity.verify import verify

CELLS = {
    "gru": {"layers": 2, "embedding": 8},
    "gru, reset before": {"reset": "before", "layers": 2},
    "lstm": {"cell": "lstm", "layers": 2},
    "rnn": {"cell": "rnn", "bias": False, "embedding": 5},
    "residual": {"layers": 3, "residual": True},
    "residual lstm": {"cell": "lstm", "layers": 3, "residual": True, "hidden": 33},
}
EVERY_CELL = pytest.mark.parametrize("name", CELLS)


# Rounding


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    matrix=arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.floats(-1e3, 1e3, width=32)),
    steps=st.sampled_from([WEIGHT_STEPS, TABLE_STEPS]),
    outputs=st.sampled_from([0, 1]),
)
def test_each_output_has_its_own_scale_and_is_off_by_half_a_step_at_most(matrix, steps, outputs):
    quantized = Quantized.of(matrix, steps, outputs)
    largest = np.abs(matrix).max(axis=1 - outputs)
    assert quantized.integers.dtype == np.int8
    assert quantized.scale.shape == largest.shape
    assert np.abs(quantized.integers.astype(int)).max() <= steps
    scale = np.expand_dims(quantized.scale.astype(float), 1 - outputs)
    assert (np.abs(quantized.matrix() - matrix) <= scale / 2 * 1.0001).all()
    normal = largest > 1e-35
    np.testing.assert_allclose(quantized.scale[normal], largest[normal] / steps, rtol=1e-6)


def test_the_largest_of_each_output_is_exact_and_zeros_stay_zero():
    matrix = np.array([[0.5, 0.0, -3.0], [-2.0, 0.0, 1.5]])
    quantized = Quantized.of(matrix, 64)
    assert quantized.integers.tolist() == [[16, 0, -64], [-64, 0, 32]]
    assert quantized.scale.tolist() == [2 / 64, 1.0, np.float32(3 / 64)]
    assert (quantized.matrix() == matrix.astype(np.float32)).all()
    assert (Quantized.of(np.zeros((3, 2)), 64).matrix() == 0).all()


def test_halves_go_to_the_even_integer():
    matrix = np.array([[64.0], [0.5], [1.5], [-2.5]])
    assert Quantized.of(matrix, 64).integers.ravel().tolist() == [64, 0, 2, -2]


def test_two_products_fit_into_sixteen_bits():
    """x86 processors before VNNI add pairs of uint8 by int8 products in 16 bits, and saturate."""
    assert 2 * 255 * WEIGHT_STEPS <= 2**15 - 1 < 2 * 255 * (WEIGHT_STEPS + 1)
    assert ZERO_POINT + STATE_STEPS == 255
    assert TABLE_STEPS <= 127


def test_parameters_are_rounded_as_the_portable_graph_has_them():
    matrix = np.random.default_rng(0).normal(size=(12, 5)) * np.arange(1, 13)[:, None]
    rows = rounded("rnn.weight_hh_l0", matrix)
    np.testing.assert_array_equal(rows, Quantized.of(matrix, WEIGHT_STEPS, outputs=0).matrix())
    symbols = rounded("embedding.weight", matrix)  # which is only read
    np.testing.assert_array_equal(symbols, Quantized.of(matrix, TABLE_STEPS, outputs=0).matrix())
    np.testing.assert_array_equal(rounded("linear.bias", matrix[0]), matrix[0].astype(np.float32))
    assert (np.abs(rows - matrix) <= np.abs(matrix).max(axis=1, keepdims=True) / WEIGHT_STEPS / 2 * 1.0001).all()


@EVERY_CELL
def test_no_pair_of_products_in_a_serving_graph_saturates(name):
    """Multiplied matrices have 7 bits; only tables, which are not multiplied, have 8."""
    bundle = build_bundle(make_run(**CELLS[name]), "x", "int8")
    for variant in VARIANTS:
        body = body_of(onnx.load_from_string(bundle.graphs[variant.key]), "Scan", "body")
        multiplied = {node.input[1] for node in body.node if node.op_type == "MatMulIntegerToFloat"}
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in body.initializer}
        assert multiplied
        assert not {node.op_type for node in body.node} & {"Gemm", "DynamicQuantizeLinear", "DequantizeLinear"}
        assert max(int(np.abs(values[key].astype(int)).max()) for key in multiplied) == WEIGHT_STEPS
        assert all(values[key].dtype == np.int8 for key in multiplied)


# The serving graphs


@EVERY_CELL
def test_serving_graphs_match_the_emulation(name):
    run = make_run(**CELLS[name])
    bundle, rng = build_bundle(run, "x", "int8"), np.random.default_rng(3)
    reference = Int8(run.model, weights_of(run))
    for key in ("decode", "decode_logprobs"):
        compared = step_by_step(FILES[key], serving_call(session(bundle.graphs[key])), reference, bundle, rng)
        assert compared.rows > 100
        assert compared.worst_state < 1e-6
        if name != "gru, reset before":  # which may see another step of r h
            assert compared.excused == 0


@pytest.mark.parametrize("name", ["gru, reset before"])
def test_verification_passes(name):
    run = make_run(**CELLS[name])
    parity = verify(build_bundle(run, "x", "int8"), run)
    assert parity.worst_difference < 1e-5
    assert parity.excused_characters <= 3


def test_rounding_costs_little_but_something():
    """The int8 graph is near the fp32 one after one step, and not the same."""
    run, rng = make_run(), np.random.default_rng(0)
    states = {"state_h": rng.uniform(-1, 1, (1, 50, 32)).astype(np.float32)}
    tokens = rng.integers(len(LETTERS), size=(50, 1))
    fp32, int8 = (
        serving_call(session(build_bundle(run, "x", precision).graphs["decode"]))(tokens, states)["next_state_h"]
        for precision in ("fp32", "int8")
    )
    assert 1e-4 < np.abs(fp32 - int8).max() < 0.05


def test_serving_graphs_are_a_third_of_the_size():
    run = make_run(hidden=256, layers=2, cell="lstm")
    int8, fp32 = (build_bundle(run, "x", precision).graphs for precision in ("int8", "fp32"))
    for key in int8:
        assert len(int8[key]) < 0.35 * len(fp32[key]), key


# The portable graph


@EVERY_CELL
def test_the_portable_graph_holds_int8_behind_dequantizers(name):
    run = make_run(**CELLS[name])
    model = onnx.load_from_string(build_bundle(run, "x", "int8").graphs["model"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in nodes(model)} == {""}
    behind = {node.input[0]: node.input[1] for node in nodes(model) if node.op_type == "DequantizeLinear"}
    matrices = [name for name, weight in run.weights.items() if weight.ndim == 2]
    assert len(behind) == len(matrices)
    for tensor in initializers(model):
        array = onnx.numpy_helper.to_array(tensor)
        assert (array.dtype == np.int8) == (tensor.name in behind)
        if array.dtype == np.float32:
            assert array.ndim == 1 or "bias" in tensor.name
    large = {tensor.name for tensor in initializers(model) if np.prod(tensor.dims) > 100 and tensor.data_type == 1}
    assert all("bias" in tensor or "scale" in tensor for tensor in large)


@EVERY_CELL
def test_the_portable_graph_is_pytorch_with_rounded_weights(name):
    """With ONNX Runtime's own optimizations, which must not round the states too."""
    run, rng = make_run(**CELLS[name]), np.random.default_rng(1)
    graph, model = session(build_bundle(run, "x", "int8").graphs["model"]), run.build()
    with torch.inference_mode():
        round_weights(model)
        for batch, time in [(1, 1), (1, 9), (5, 3), (3, 17)]:
            tokens = rng.integers(len(LETTERS), size=(batch, time))
            states = [rng.uniform(-1, 1, part.shape).astype(np.float32) for part in model.initial_state(batch)]
            names = ["state_h", "state_c"][: len(states)]
            got = graph.run(None, {"tokens": tokens, **dict(zip(names, states, strict=True))})
            expected, after = model(torch.from_numpy(tokens), tuple(map(torch.from_numpy, states)))
            for values, right in zip(got, (expected, *after), strict=True):
                np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-5)


# Faults that verification must find


def scaled_initializer(graph, pick, factor):
    model = onnx.load_from_string(graph)
    tensor = next(tensor for tensor in initializers(model) if pick(tensor))
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return model.SerializeToString()


OFF_BY_ONE = [
    ("rill.export.graphs.arithmetic.STATE_STEPS", 126),
    ("rill.export.parity.emulation.STATE_STEPS", 126),
    ("rill.export.parity.emulation.WEIGHT_STEPS", 63),
    ("rill.export.parity.emulation.TABLE_STEPS", 126),
    ("rill.export.graphs.portable.WEIGHT_STEPS", 63),
    ("rill.export.graphs.portable.TABLE_STEPS", 126),
]


@pytest.mark.parametrize(("what", "value"), OFF_BY_ONE)
@pytest.mark.parametrize("name", ["gru", "gru, reset before"])
def test_verification_catches_a_step_too_few(monkeypatch, name, what, value):
    if what == "rill.export.graphs.portable.TABLE_STEPS" and not CELLS[name].get("embedding"):
        pytest.skip("one-hot input has no table in the portable graph")
    run = make_run(**CELLS[name])
    monkeypatch.setattr(what, value)
    with pytest.raises(ParityError):
        verify(build_bundle(run, "x", "int8"), run)


def test_verification_catches_a_scale_of_the_portable_graph():
    run = make_run(cell="lstm")
    bundle = build_bundle(run, "x", "int8")
    changed = scaled_initializer(
        bundle.graphs["model"], lambda tensor: tensor.name.endswith("linear.weight.scale"), 1.001
    )
    with pytest.raises(ParityError, match=r"model\.onnx"):
        verify(replace(bundle, graphs={**bundle.graphs, "model": changed}), run)


@pytest.mark.parametrize("key", [variant.key for variant in VARIANTS])
def test_verification_catches_a_scale_of_any_serving_graph(key):
    run = make_run()
    bundle = build_bundle(run, "x", "int8")
    columns = 2 * run.model.hidden  # of the reset and the update gate's product

    def is_scale(tensor):
        return list(tensor.dims) == [columns] and tensor.data_type == onnx.TensorProto.FLOAT

    changed = scaled_initializer(bundle.graphs[key], is_scale, 1.001)
    with pytest.raises(ParityError, match=FILES[key].replace(".", r"\.")):
        verify(replace(bundle, graphs={**bundle.graphs, key: changed}), run)
