"""The portable graph of every model that training can make: PyTorch's results in standard operators."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_parts import nodes
from onnx.reference import ReferenceEvaluator

from rill.export.graphs.arithmetic import rounded
from rill.export.graphs.portable import model_graph, states_of
from rill.export.graphs.weights import weights_of
from rill.export.parity.compare import session
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.model import CharacterModel
from rill.train.record.run import Run
from rill.vocabulary import Vocabulary

SYMBOLS, LABELS, HIDDEN = tuple("abcdefg"), ("first", "second", "third", "fourth"), 5

CELLS = [{"cell": "gru"}, {"cell": "gru", "reset": "before"}, {"cell": "lstm"}, {"cell": "rnn"}]
DEPTHS = [{"layers": 1, "residual": True}, {"layers": 3}, {"layers": 3, "residual": True}]  # one layer has no sum
TASKS = [{}, {"task": "tag"}, {"task": "tag", "bidirectional": True}]
BIASES = [{}, {"bias": False}]
INPUTS = [{}, {"embedding": 6}]
MODELS = [a | b | c | d | e for a, b, c, d, e in product(CELLS, DEPTHS, TASKS, BIASES, INPUTS)]


def run_of(config):
    torch.manual_seed(3)
    model_config = ModelConfig(hidden=HIDDEN, **config)
    labels = LABELS if model_config.task == "tag" else ()
    model = CharacterModel(model_config, len(SYMBOLS), len(labels))
    return Run(Path("x"), model_config, TrainingConfig(steps=1), Vocabulary(SYMBOLS), labels, model.state_dict())


def graph_of(run, precision="fp32"):
    return model_graph(run.model, weights_of(run), precision, {})


def assert_matches_pytorch(runtime, run):
    """Compare chained calls from random states, in several batches and times; PyTorch computes in float64."""
    rng = np.random.default_rng(1)
    model = run.build().double()
    names = [name for name, _ in states_of(run.model)]
    for batch, times in [(1, (1, 6)), (4, (7, 2))]:
        states = [rng.uniform(-1, 1, part.shape).astype(np.float32) for part in model.initial_state(batch)]
        expected_states = tuple(torch.from_numpy(part).double() for part in states)
        for time in times:
            tokens = rng.integers(len(SYMBOLS), size=(batch, time))
            logits, *states = runtime.run(None, {"tokens": tokens, **dict(zip(names, states, strict=True))})
            with torch.inference_mode():
                expected, expected_states = model(torch.from_numpy(tokens), expected_states)
            for values, right in zip((logits, *states), (expected, *expected_states), strict=True):
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, right.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", MODELS, ids=str)
def test_the_graph_matches_pytorch(config):
    run = run_of(config)
    assert_matches_pytorch(session(graph_of(run)), run)


def rounded_model(run):
    """The run with the weights of its int8 graph."""
    weights = {name: torch.from_numpy(rounded(name, value.double().numpy())) for name, value in run.weights.items()}
    return replace(run, weights=weights)


@pytest.mark.parametrize("config", [a | b for a in CELLS for b in INPUTS], ids=str)
def test_the_int8_graph_is_pytorch_with_rounded_weights(config):
    """Whatever ONNX Runtime's optimizations."""
    run = run_of({"layers": 3, "residual": True, **config})
    assert_matches_pytorch(session(graph_of(run, "int8")), rounded_model(run))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("depth", DEPTHS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_another_runtime_agrees(cell, depth, inputs, precision):
    """onnx's own evaluator, in NumPy."""
    run = run_of({**depth, **cell, **inputs})
    model = onnx.load_from_string(graph_of(run, precision))
    if precision == "int8":
        model.opset_import[0].version = 19  # the evaluator has no older DequantizeLinear
    evaluator = ReferenceEvaluator(model)
    assert_matches_pytorch(evaluator, run if precision == "fp32" else rounded_model(run))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_another_runtime_agrees_on_two_directions(cell):
    config = {"task": "tag", "layers": 3, "residual": True, "embedding": 6, "bidirectional": True}
    run = run_of({**config, **cell})
    assert_matches_pytorch(ReferenceEvaluator(onnx.load_from_string(graph_of(run))), run)


EMPTY = [(0, 3), (1, 0), (4, 0), (0, 0)]  # batch, time


def assert_empty_texts_change_nothing(runtime, run):
    """No logits, and the states as they were, to the bit; a text after it reads as if nothing had been."""
    rng = np.random.default_rng(2)
    names = [name for name, _ in states_of(run.model)]
    for batch, time in EMPTY:
        states = {
            name: rng.normal(0, 5, part.shape).astype(np.float32)
            for name, part in zip(names, run.build().initial_state(batch), strict=True)
        }
        logits, *after = runtime.run(None, {"tokens": np.zeros((batch, time), np.int64), **states})
        assert logits.shape == (batch, time, len(run.labels or SYMBOLS))
        assert logits.dtype == np.float32
        for part, same in zip(states.values(), after, strict=True):
            assert (part.shape, part.dtype, part.tobytes()) == (same.shape, same.dtype, same.tobytes())
    assert_matches_pytorch(runtime, run)


@pytest.mark.parametrize("inputs", INPUTS, ids=str)
@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("depth", DEPTHS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_text_of_length_0_and_a_batch_of_0_texts(cell, depth, task, inputs):
    """Such an axis ends the process in recurrent operators of ONNX Runtime."""
    run = run_of({**cell, **depth, **task, **inputs})
    assert_empty_texts_change_nothing(session(graph_of(run)), run)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_empty_texts_in_int8_and_in_another_runtime(cell):
    run = run_of({**cell, "layers": 3, "residual": True})
    assert_empty_texts_change_nothing(session(graph_of(run, "int8")), rounded_model(run))
    assert_empty_texts_change_nothing(ReferenceEvaluator(onnx.load_from_string(graph_of(run))), run)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("depth", DEPTHS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_graph_is_of_the_oldest_format(cell, depth, precision):
    """Opset 14 and IR 8, for runtimes of 2021 and later; converters to newer opsets read it."""
    model = onnx.load_from_string(graph_of(run_of({**cell, **depth, "embedding": 6}), precision))
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 14)]
    model.opset_import[0].version, model.ir_version = 21, 10
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_graph_describes_itself(cell, task):
    run = run_of({"layers": 2, **cell, **task})
    model = onnx.load_from_string(graph_of(run))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in nodes(model)} == {""}

    def shapes(values):
        return {v.name: [axis.dim_param or axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in values}

    state, parts = [2 * run.model.directions, "batch", HIDDEN], ["h", "c"] if run.model.cell == "lstm" else ["h"]
    outputs = {"logits": ["batch", "time", len(LABELS) if task else len(SYMBOLS)]}
    outputs |= {f"next_state_{part}": state for part in parts}
    assert shapes(model.graph.input) == {"tokens": ["batch", "time"]} | {f"state_{part}": state for part in parts}
    assert shapes(model.graph.output) == outputs

    # The declared outputs also follow from the nodes.
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    assert shapes(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output) == outputs
