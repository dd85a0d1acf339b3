"""The exported graphs match PyTorch, and the verification of every export notices if they do not."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from graph_parts import body_of, initializers, nodes
from random_models import LETTERS, make_run

from rill.bundle import FILES, VARIANTS
from rill.export.errors import ParityError
from rill.export.graphs import serving
from rill.export.graphs import steps as cells
from rill.export.graphs.build import build_bundle
from rill.export.graphs.choice import Choice
from rill.export.graphs.portable import GATES, model_graph
from rill.export.graphs.serving import decode_graph
from rill.export.graphs.weights import weights_of
from rill.export.parity.choices import free_running
from rill.export.parity.compare import random_states, session
from rill.export.parity.reference import next_states
from rill.export.parity.teacher_forced import portable_call, serving_call
from rill.export.parity.verify import RUNS, verify

SHAPES = [
    {"layers": 1, "hidden": 32},
    {"layers": 1, "hidden": 17, "bias": False},
    {"layers": 2, "hidden": 24, "embedding": 8},
    {"layers": 3, "hidden": 32, "embedding": 5, "bias": False, "dropout": 0.3},
    {"layers": 1, "hidden": 256},
    {"reset": "before", "layers": 2, "embedding": 8},
    {"reset": "before", "hidden": 17, "bias": False},
    {"cell": "lstm", "layers": 2, "embedding": 8},
    {"cell": "lstm", "hidden": 33, "bias": False, "layers": 3, "residual": True},
    {"cell": "rnn", "layers": 2},
    {"cell": "rnn", "bias": False, "embedding": 5, "layers": 3, "residual": True},
    {"layers": 4, "residual": True},
]
MANY = tuple(map(chr, range(0x4E00, 0x4E00 + 300)))  # a vocabulary that is searched, not compared by pairs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graphs_match_pytorch(shape):
    run = make_run(**shape)
    model, bundle = run.build(), build_bundle(run, "tiny")
    calls = {
        key: (serving_call if key != "model" else portable_call)(session(bundle.graphs[key]))
        for key in ("model", "decode", "decode_logprobs")
    }
    rng = np.random.default_rng(5)
    for batch, time in [(1, 1), (1, 64), (3, 7), (64, 2), (5, 129)]:
        start = random_states(bundle, batch, rng)
        expected_states = tuple(map(torch.from_numpy, start.values()))
        states = dict.fromkeys(calls, start)
        for _ in range(2):
            tokens = rng.integers(len(LETTERS), size=(batch, time))
            with torch.inference_mode():
                expected, expected_states = model(torch.from_numpy(tokens), expected_states)
            for key, call in calls.items():
                got = call(tokens, states[key])
                if key == "model":
                    np.testing.assert_allclose(got["logits"], expected, rtol=1e-5, atol=1e-5)
                states[key] = next_states(got)
                for values, right in zip(states[key].values(), expected_states, strict=True):
                    np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-5)


PASSING = [
    {"reset": "before", "embedding": 8, "symbols": ("<unk>", *LETTERS)},
    pytest.param({"cell": "lstm", "layers": 2, "residual": True, "symbols": MANY[:120]}, marks=pytest.mark.long),
    {"cell": "rnn", "symbols": ("a",)},
    {"hidden": 8, "symbols": ("a", "<unk>", "b")},  # all symbols are alternatives, `<unk>` too
]


@pytest.mark.parametrize("shape", PASSING, ids=lambda shape: str(shape)[:50])
def test_verification_passes_and_counts(shape):
    run = make_run(**shape)
    parity = verify(build_bundle(run, "tiny"), run)
    assert parity.worst_difference < 1e-5
    assert (parity.greedy_characters, parity.sampled_characters, parity.filtered_characters) == (2000, 2000, 4000)
    assert parity.choices == 4 * 600 + 2 * 128  # of them in the graphs for texts that must match
    assert parity.excused_characters <= 5
    assert parity.excused_rows == 0
    assert parity.rows > 500
    assert parity.logprob_difference < 1e-4


def with_graph(bundle, key, graph):
    return replace(bundle, graphs={**bundle.graphs, key: graph})


@pytest.fixture
def catches(monkeypatch):
    """Assert that verification rejects one graph of a bundle; only that graph is compared, and briefly."""

    def check(run, bundle, key, match=""):
        monkeypatch.setattr(free_running, "__defaults__", (300,))
        only = tuple(variant for variant in VARIANTS if variant.key == key)
        monkeypatch.setattr("rill.export.parity.verify.VARIANTS", only)
        monkeypatch.setattr("rill.export.parity.verify.RUNS", tuple(each for each in RUNS if each[0] == key))
        with pytest.raises(ParityError, match=FILES[key].replace(".", r"\.") + f".*{match}"):
            verify(bundle, run)

    return check


@cache
def right(precision="fp32", **shape):
    """A run and its bundle."""
    run = make_run(**shape)
    return run, build_bundle(run, "tiny", precision)


def build(run, key, precision="fp32", change=lambda *parts: parts):
    """One graph of a changed configuration or changed weights."""
    config, weights = change(run.model, weights_of(run))
    if key == "model":
        return model_graph(config, weights, precision, {})
    variant = next(variant for variant in VARIANTS if variant.key == key)
    return decode_graph(config, weights, run.vocabulary, variant, precision, {})


# Builders that are wrong


def with_weights(change):
    """Change all layers' parameters, as arrays of gates (gates, hidden, …)."""

    def apply(config, weights):
        gates = {"gru": 3, "lstm": 4, "rnn": 1}[config.cell]

        def changed(layer):
            parts = {name: values.reshape(gates, -1, *values.shape[1:]) for name, values in vars(layer).items()}
            return replace(layer, **{n: v.reshape(getattr(layer, n).shape) for n, v in change(parts).items()})

        return config, replace(weights, layers=tuple(map(changed, weights.layers)))

    return apply


def swapped(first, second):
    def change(parts):
        order = list(range(len(parts["input"])))
        order[first], order[second] = order[second], order[first]
        return {name: values[order] for name, values in parts.items()}

    return with_weights(change)


def zeroed(name, gate):
    return with_weights(lambda p: p | {name: np.where(np.arange(len(p[name]))[:, None] == gate, 0, p[name])})


def configured(**other):
    return lambda config, weights: (replace(config, **other), weights)


def without_output_bias(config, weights):
    return config, replace(weights, linear_bias=weights.linear_bias * (np.arange(len(weights.linear_bias)) != 7))


def layers_swapped(config, weights):
    first, *others = weights.layers
    return config, replace(weights, layers=(first, *others[::-1]))


BUILT_WRONG = [
    ({}, swapped(0, 1)),
    ({}, zeroed("hidden_bias", 2)),
    ({}, zeroed("input_bias", 0)),
    ({}, configured(reset="before")),
    ({}, without_output_bias),
    ({"reset": "before"}, configured(reset="after")),
    ({"reset": "before"}, swapped(0, 2)),
    ({"cell": "lstm"}, swapped(0, 1)),
    ({"cell": "lstm"}, swapped(0, 3)),
    ({"cell": "lstm"}, zeroed("hidden_bias", 3)),
    ({"cell": "rnn"}, zeroed("input_bias", 0)),
    ({"layers": 3, "residual": True}, configured(residual=False)),
    ({"layers": 3}, configured(residual=True)),
    ({"layers": 3}, layers_swapped),
]


@pytest.mark.parametrize("key", ["model", "decode"])
@pytest.mark.parametrize(("shape", "change"), BUILT_WRONG)
def test_verification_catches_a_graph_built_of_something_else(catches, shape, change, key):
    run, bundle = right(**shape)
    catches(run, with_graph(bundle, key, build(run, key, change=change)), key)


def swap_states(step):
    return lambda *arguments: step(*arguments)[::-1]


def old_cell(step):
    """h' = o tanh(c)."""

    def take(a, layer, x, state, active):
        (h, c), g = step(a, layer, x, state, active), a.g
        return g.op("Mul", h, g.op("Div", g.op("Tanh", state[1]), g.op("Tanh", c))), c

    return take


def turned_update(step):
    """h' = n + u (h - n)."""

    def take(a, layer, x, state, active):
        (new,), g = step(a, layer, x, state, active), a.g
        return (g.op("Sub", state[0], g.op("Sub", new, state[0])),)

    return take


def always_active(step):
    def take(a, layer, x, state, moves):
        active = moves._active
        always = a.g.op("Add", active, a.g.op("Sub", a.g.constant(1.0), active))
        return step(a, layer, x, state, cells.Moves(a.g, always))

    return take


WRONG_STEPS = [
    ({"cell": "lstm"}, "lstm_step", swap_states),
    ({"cell": "lstm"}, "lstm_step", old_cell),
    ({}, "gru_step", turned_update),
    ({}, "gru_step", always_active),
    ({"reset": "before"}, "gru_reset_before_step", always_active),
    ({"cell": "lstm"}, "lstm_step", always_active),
    ({"cell": "rnn"}, "rnn_step", always_active),
]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("shape", "name", "change"), WRONG_STEPS)
def test_verification_catches_a_wrong_step(monkeypatch, catches, shape, name, change, precision):
    run, bundle = right(precision, **shape)
    monkeypatch.setattr(cells, name, change(getattr(cells, name)))
    catches(run, with_graph(bundle, "decode", build(run, "decode", precision)), "decode")


def sum_of_outputs_alone(network):
    """Layers read the output of the layer below; only the output layer reads the sum."""

    def build(a, config, weights, x, entry, active):
        _, exit_ = network(a, replace(config, residual=False), weights, x, entry, active)
        total = exit_[0][0]
        for state in exit_[1:]:
            total = a.g.op("Add", total, state[0])
        return a.operand(total, len(exit_)), exit_

    return build


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_verification_catches_a_residual_sum_in_the_wrong_place(monkeypatch, catches, precision):
    run, bundle = right(precision, layers=3, residual=True)
    monkeypatch.setattr(serving, "_network", sum_of_outputs_alone(serving._network))
    catches(run, with_graph(bundle, "decode", build(run, "decode", precision)), "decode")


@pytest.mark.parametrize(("cell", "order"), [("gru", (0, 1, 2)), ("lstm", (0, 1, 2, 3))])
def test_verification_catches_gates_in_another_order(monkeypatch, catches, cell, order):
    run, bundle = right(cell=cell)
    monkeypatch.setitem(GATES, cell, order)
    catches(run, with_graph(bundle, "model", build(run, "model")), "model")


def replace_those_there(choice, **changed):
    """A variant has only the parameters that it needs."""
    for name, change in changed.items():
        if hasattr(choice, name):
            setattr(choice, name, change(getattr(choice, name)))


def no_top_p(choice, g, mass):
    replace_those_there(
        choice,
        skips_top_p=lambda value: g.op("Or", value, g.op("Not", value)),
        uses_top_p=lambda value: g.op("Sub", value, value),
        top_p_or_infinity=lambda _: g.constant(np.array([[np.inf]], np.float32)),
    )


def no_min_p(choice, g, mass):
    zero = lambda value: g.op("Sub", value, value)  # noqa: E731
    replace_those_there(choice, min_p=zero, not_quite_min_p=zero)


def no_top_k(choice, g, mass):
    replace_those_there(choice, uses_top_k=lambda value: g.op("Sub", value, value))
    choice.k_index = g.op("Sub", "window", g.constant(1))
    choice.k_index = g.op("Add", g.op("Mul", "top_k", g.constant(0)), choice.k_index)
    choice.k_index = g.op("Unsqueeze", choice.k_index, g.constant([-1]))


def one_more(choice, g, mass):
    within = g.op("Cast", g.op("Less", choice.k_index, g.op("Sub", "window", g.constant(1))), to=onnx.TensorProto.INT64)
    choice.k_index = g.op("Add", choice.k_index, within)


def half_of_top_p(choice, g, mass):
    half = lambda value: g.op("Mul", value, g.constant(0.5))  # noqa: E731
    replace_those_there(choice, top_p=half, top_p_or_infinity=half)


WRONG_FILTERS = [
    ("decode_top_p", no_top_p),
    ("decode_top_p", half_of_top_p),
    ("decode_top_p", no_min_p),
    ("decode_top_k", no_top_p),
    ("decode_top_k", half_of_top_p),
    ("decode_top_k", no_min_p),
    ("decode_top_k", no_top_k),
    ("decode_top_k", one_more),
    ("decode_logprobs", no_top_p),
    ("decode_logprobs", no_min_p),
    ("decode_logprobs", no_top_k),
]


@pytest.mark.parametrize("symbols", [LETTERS, MANY], ids=len)
@pytest.mark.parametrize(("key", "change"), WRONG_FILTERS)
def test_verification_catches_a_wrong_filter(monkeypatch, catches, key, change, symbols):
    (run, bundle), keep = right(symbols=symbols), Choice._filter

    def wrong(choice, g, mass):
        change(choice, g, mass)
        return keep(choice, g, mass)

    monkeypatch.setattr(Choice, "_filter", wrong)
    catches(run, with_graph(bundle, key, build(run, key)), key, match="chosen")


# Graphs that are damaged


def _with_changed_constant(graph: bytes, pick, change) -> bytes:
    model = onnx.load_from_string(graph)
    tensor = next(tensor for tensor in initializers(model) if pick(tensor))
    array = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(array), tensor.name))
    return model.SerializeToString()


@pytest.mark.parametrize("key", FILES)
def test_verification_catches_a_wrong_weight(tiny, tiny_run, catches, key):
    def nudge(array):
        array.flat[7] += 0.01
        return array

    changed = _with_changed_constant(tiny.graphs[key], lambda t: len(t.dims) >= 2 and 32 in t.dims, nudge)
    catches(tiny_run, with_graph(tiny, key, changed), key)


@pytest.mark.parametrize("key", [variant.key for variant in VARIANTS])
def test_verification_catches_wrong_output_weights_of_a_serving_graph(tiny, tiny_run, catches, key):
    """Most serving graphs output no logits: their characters show the output layer."""
    shape = [32, len(LETTERS)]
    changed = _with_changed_constant(
        tiny.graphs[key], lambda t: list(t.dims) == shape and t.name.startswith("step."), lambda a: a * 1.01
    )
    catches(tiny_run, with_graph(tiny, key, changed), key, match="(chosen|log-prob)")


def _reverse(model):
    gru = next(node for node in nodes(model) if node.op_type == "GRU")
    gru.attribute.append(onnx.helper.make_attribute("direction", "reverse"))


def _other_reset(model):
    gru = next(node for node in nodes(model) if node.op_type == "GRU")
    next(attribute for attribute in gru.attribute if attribute.name == "linear_before_reset").i = 0


def _next_rows_state(model):
    """Return each row's state in its neighbour's row."""
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
    return body_of(model, "Scan", "body")


def _subtracted_bias(model):
    next(node for node in _body(model).node if "logit_bias" in node.input).op_type = "Sub"


def _one_step_more(model):
    next(node for node in model.graph.node if "steps" in node.input).op_type = "LessOrEqual"


def _greater_or_equal(model):
    _last_of(model, "Greater").op_type = "GreaterOrEqual"


def _last_of_equals(model):
    _last_of(model, "ArgMax").attribute.append(onnx.helper.make_attribute("select_last_index", 1))


def _last_of(model, kind):
    return [node for node in _body(model).node if node.op_type == kind][-1]


def _token_from_last_step(model):
    """Return the characters that were read instead of those that were chosen."""
    node = next(node for node in _body(model).node if "step.tokens" in node.output)
    node.input[:] = ["step.token"]


ANY = [_next_rows_state, _one_step_more, _greater_or_equal, _last_of_equals, _token_from_last_step]
DAMAGED = [("model", change) for change in (_reverse, _other_reset, _next_rows_state)]
DAMAGED += [(variant.key, change) for variant in VARIANTS for change in ANY]
DAMAGED += [(variant.key, _subtracted_bias) for variant in VARIANTS if variant.filters]


@pytest.mark.parametrize(("key", "change"), DAMAGED)
def test_verification_catches_a_damaged_graph(tiny, tiny_run, catches, key, change):
    model = onnx.load_from_string(tiny.graphs[key])
    change(model)
    catches(tiny_run, with_graph(tiny, key, model.SerializeToString()), key)


def _changed_output(name, kind, value):
    """Change an output of the graph by one more operator."""

    def change(model):
        for node in model.graph.node:
            node.output[:] = ["unchanged" if output == name else output for output in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), "changing"))
        model.graph.node.append(onnx.helper.make_node(kind, ["unchanged", "changing"], [name]))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed_output("logprobs", "Mul", np.float32(1.001)),
        _changed_output("logprobs", "Add", np.float32(1e-3)),
        _changed_output("top_logprobs", "Mul", np.float32(1.001)),
        _changed_output("top_tokens", "Sub", 1),
    ],
)
def test_verification_catches_wrong_log_probabilities(catches, change):
    run, bundle = right(symbols=("<unk>", *LETTERS))
    model = onnx.load_from_string(bundle.graphs["decode_logprobs"])
    change(model)
    wrong = with_graph(bundle, "decode_logprobs", model.SerializeToString())
    catches(run, wrong, "decode_logprobs", match="log-prob")


def test_portable_graph_describes_itself(tiny):
    model = onnx.load_from_string(tiny.graphs["model"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in nodes(model)} == {""}
    assert [value.name for value in model.graph.input] == ["tokens", "state_h"]
    assert [value.name for value in model.graph.output] == ["logits", "next_state_h"]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        "time",
        len(LETTERS),
    ]
    assert {prop.key for prop in model.metadata_props} == {"rill.model", "rill.states", "rill.vocabulary"}
