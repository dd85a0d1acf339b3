"""The serving graph: many characters for a whole batch in one call, the sampling included.

    inputs    token         int64 [batch]                 each row's last character: the next one the model reads
              state_h       f32   [layers, batch, hidden]
              uniforms      f32   [time, batch]           in [0, 1): what chooses the character of each step
              forced        int64 [time, batch]           >= 0: take this character (a prompt, a replay); -1: choose
              steps         int64 [batch]                 how many steps each row takes; then its state stays as it is
              temperature   f32   [batch]                 0 is greedy
    and, in the variant with filters,
              top_k         int64 [batch]                 0 is off
              top_p         f32   [batch]                 1 is off
              min_p         f32   [batch]                 0 is off
              logit_bias    f32   [batch, vocab]          0 is none
    outputs   tokens        int64 [time, batch]           a row's entries from its `steps` on mean nothing
              next_state_h  f32   [layers, batch, hidden]

A row's next `token` is its entry in `tokens` at `steps - 1`. Rows do not influence one another: a row's bits are the
same in any batch and however its steps are cut into calls, and the variants agree where the filters are off (tested).

One `Scan` runs the step over time, and what the step costs decides the speed of everything. So it is folded: a
character is an index, and the first layer's input product is a row of a table made here; biases that meet are added
here; the update gate is turned round, u = 1 - z, so that h' = h + u (n - h) and u = 0 freezes a row past its limit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from export.graph import FLOAT, INT64, Graph, model_bytes, tensor
from export.sampling import GREEDY_TEMPERATURE
from export.weights import Layer, Matrix, Weights


def decode_graph(weights: Weights, unknown_id: int | None, filters: bool, metadata: Mapping[str, str]) -> bytes:
    """The serialised serving graph; `unknown_id` is the symbol it never produces, `filters` chooses the variant."""
    layers, hidden, vocabulary = len(weights.layers), weights.hidden, weights.vocabulary_size
    main = Graph("decode")
    call = _per_call(main, vocabulary, filters)

    body = Graph("step", within=main)
    states = [f"step.h_{layer}" for layer in range(layers)]
    next_states = [f"step.next_h_{layer}" for layer in range(layers)]
    output = _network(body, weights, "step.token", states, next_states, "step.active")
    logits = _logits(body, weights, unknown_id, output)
    chosen = _choose(body, logits, vocabulary, "step.chance", call)
    is_forced = body.op("GreaterOrEqual", "step.forced", body.constant(0))
    body.op("Where", is_forced, "step.forced", chosen, out="step.next_token")
    body.op("Identity", "step.next_token", out="step.emitted")
    step = body.finish(
        inputs=[
            tensor("step.token", INT64, ["batch"]),
            *(tensor(name, FLOAT, ["batch", hidden]) for name in states),
            tensor("step.chance", FLOAT, ["batch", 1]),
            tensor("step.forced", INT64, ["batch"]),
            tensor("step.active", FLOAT, ["batch", 1]),
        ],
        outputs=[
            tensor("step.next_token", INT64, ["batch"]),
            *(tensor(name, FLOAT, ["batch", hidden]) for name in next_states),
            tensor("step.emitted", INT64, ["batch"]),
        ],
    )

    # The loop carries a state per layer: a Split in the body would copy at every step.
    first_axis = main.constant([0])
    entry = main.ops("Split", "state_h", out=layers, axis=0, num_outputs=layers)
    entry = [main.op("Squeeze", state, first_axis) for state in entry]
    _, *exit_, _ = main.ops(
        "Scan",
        *("token", *entry, call.chance, "forced", call.active),
        out=["last_token", *(f"exit_{layer}" for layer in range(layers)), "tokens"],
        body=step,
        num_scan_inputs=3,
    )
    main.op("Concat", *(main.op("Unsqueeze", state, first_axis) for state in exit_), axis=0, out="next_state_h")

    inputs = [
        tensor("token", INT64, ["batch"]),
        tensor("state_h", FLOAT, [layers, "batch", hidden]),
        tensor("uniforms", FLOAT, ["time", "batch"]),
        tensor("forced", INT64, ["time", "batch"]),
        tensor("steps", INT64, ["batch"]),
        tensor("temperature", FLOAT, ["batch"]),
    ]
    if filters:
        inputs += [
            tensor("top_k", INT64, ["batch"]),
            tensor("top_p", FLOAT, ["batch"]),
            tensor("min_p", FLOAT, ["batch"]),
            tensor("logit_bias", FLOAT, ["batch", vocabulary]),
        ]
    outputs = [
        tensor("tokens", INT64, ["time", "batch"]),
        tensor("next_state_h", FLOAT, [layers, "batch", hidden]),
    ]
    return model_bytes(main.finish(inputs, outputs), metadata)


@dataclass(frozen=True)
class _Filters:
    """Values of the main graph, each (batch, 1)."""

    k_index: str  # where the k-th largest is among the ordered
    top_p: str
    uses_top_p: str
    min_p: str


@dataclass(frozen=True)
class _PerCall:
    """Values of the main graph that are the same at every step: made once a call."""

    active: str  # (time, batch, 1): 1.0 until a row's limit, then 0.0
    chance: str  # (time, batch, 1)
    temperature: str  # (batch, 1)
    filters: _Filters | None


def _per_call(main: Graph, vocabulary: int, filters: bool) -> _PerCall:
    last_axis = main.constant([-1])

    def column(value: str) -> str:
        return main.op("Unsqueeze", value, last_axis)

    one = numpy_helper.from_array(np.array([1], np.int64))
    ones = main.op("ConstantOfShape", main.op("Shape", "uniforms", start=0, end=1), value=one)
    # 0, 1, 2, ...: a Range would want the time as a scalar, and CUDA has no kernel for making it one.
    steps_done = column(main.op("CumSum", ones, main.constant(0), exclusive=1))
    active = main.op("Cast", main.op("Less", steps_done, "steps"), to=FLOAT)
    # Greedy is u = 0 at a temperature so small that only the largest logits keep any mass: the first of them is chosen.
    samples = main.op("Cast", main.op("Greater", "temperature", main.constant(0.0)), to=FLOAT)
    chance = main.op("Mul", "uniforms", samples)
    temperature = main.op("Max", "temperature", main.constant(GREEDY_TEMPERATURE))
    made = _Filters(*_per_call_filters(main, vocabulary, column)) if filters else None
    return _PerCall(column(active), column(chance), column(temperature), made)


def _per_call_filters(main: Graph, vocabulary: int, column: Callable[[str], str]) -> tuple[str, str, str, str]:
    size = main.constant(vocabulary)
    # Not with Min: ONNX Runtime's for int64 is wrong from 2^31 on (seen in 1.31.1).
    keeps_all = main.op("Or", main.op("Equal", "top_k", main.constant(0)), main.op("Greater", "top_k", size))
    k = main.op("Where", keeps_all, size, "top_k")
    k_index = main.op("Sub", k, main.constant(1))
    uses_top_p = main.op("Less", "top_p", main.constant(1.0))
    return column(k_index), column("top_p"), column(uses_top_p), column("min_p")


def _network(g: Graph, weights: Weights, token: str, states: list[str], next_states: list[str], active: str) -> str:
    """All layers for one step; writes `next_states` and returns the last layer's output (batch, hidden)."""
    hidden = weights.hidden
    output = ""
    for index, layer in enumerate(weights.layers):
        bias = layer.input_bias.copy()
        bias[: 2 * hidden] += layer.hidden_bias[
            : 2 * hidden
        ]  # the candidate's hidden bias is scaled by r: it stays apart
        product = layer.input.T
        if index == 0:
            table = (product if weights.embedding is None else weights.embedding @ product) + bias
            gates, candidate = _split_gates(table)
            from_input = g.op("Gather", g.constant(gates), token), g.op("Gather", g.constant(candidate), token)
        else:
            (gates, candidate), (gates_bias, candidate_bias) = _split_gates(product), _split_gates(bias)
            from_input = (
                g.op("Gemm", output, g.constant(gates), g.constant(gates_bias)),
                g.op("Gemm", output, g.constant(candidate), g.constant(candidate_bias)),
            )
        output = _gru_step(g, layer, *from_input, states[index], active, out=next_states[index])
    return output


def _gru_step(g: Graph, layer: Layer, x_gates: str, x_candidate: str, h: str, active: str, out: str) -> str:
    """r, u = sigmoid(x_ru + h U_ru);  n = tanh(x_n + r (h U_n + b_n));  h' = h + u (n - h).

    The equations of torch.nn.GRU with u = 1 - z; the input's part is in `x_gates` (batch, 2 * hidden) and
    `x_candidate` (batch, hidden).
    """
    gates, candidate = _split_gates(layer.hidden.T)
    _, candidate_bias = _split_gates(layer.hidden_bias)
    # The input's part enters as Gemm's addend, and ONNX Runtime fuses the sigmoid into the same Gemm.
    ru = g.op("Sigmoid", g.op("Gemm", h, g.constant(gates), x_gates))
    r, u = g.ops("Split", ru, out=2, axis=1, num_outputs=2)
    n = g.op("Gemm", h, g.constant(candidate), g.constant(candidate_bias))
    n = g.op("Tanh", g.op("Add", x_candidate, g.op("Mul", r, n)))
    u = g.op("Mul", u, active)
    return g.op("Add", h, g.op("Mul", u, g.op("Sub", n, h)), out=out)


def _split_gates(values: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Columns r, z, n as float32 [r, u] and [n]; sigmoid(-a) = 1 - sigmoid(a) turns z round."""
    r, z, n = np.split(values, 3, axis=-1)
    return np.concatenate([r, -z], axis=-1).astype(np.float32), n.astype(np.float32)


def _logits(g: Graph, weights: Weights, unknown_id: int | None, output: str) -> str:
    """The logits (batch, vocab), that of `<unk>` at -infinity."""
    bias = weights.linear_bias.astype(np.float32)
    if unknown_id is not None:
        bias[unknown_id] = -np.inf
    return g.op("Gemm", output, g.constant(weights.linear.T.astype(np.float32)), g.constant(bias))


def _choose(g: Graph, logits: str, vocabulary: int, chance: str, call: _PerCall) -> str:
    """`export.sampling.choose` for a batch, operation by operation: int64 (batch,)."""
    axis = g.constant([1])
    if call.filters:
        logits = g.op("Add", logits, "logit_bias")
    largest = g.op("ReduceMax", logits, axis, keepdims=1)
    mass = g.op("Exp", g.op("Div", g.op("Sub", logits, largest), call.temperature))
    if call.filters:
        kept = g.op("GreaterOrEqual", mass, _threshold(g, mass, vocabulary, call.filters))
        mass = g.op("Where", kept, mass, g.constant(0.0))
    cumulative = g.op("CumSum", mass, g.constant(1))
    boundary = g.op("Mul", chance, _last_column(g, cumulative, vocabulary))
    # ArgMax takes the first of equals: the first character beyond the boundary.
    return g.op("ArgMax", g.op("Cast", g.op("Greater", cumulative, boundary), to=FLOAT), axis=1, keepdims=0)


def _threshold(g: Graph, mass: str, vocabulary: int, filters: _Filters) -> str:
    """The smallest mass that top-k, top-p and min-p keep (batch, 1): equal masses share their fate."""
    axis, zero = g.constant([1]), g.constant(0.0)
    ordered, _ = g.ops("TopK", mass, g.constant([vocabulary]), out=2, axis=1)
    top_k = g.op("GatherElements", ordered, filters.k_index, axis=1)

    kept = g.op("Where", g.op("GreaterOrEqual", ordered, top_k), ordered, zero)
    total = _last_column(g, g.op("CumSum", kept, g.constant(1)), vocabulary)
    ahead = g.op(
        "CumSum", kept, g.constant(1), exclusive=1
    )  # for the first of several equals: the strictly larger ones
    inside = g.op("Cast", g.op("Less", ahead, g.op("Mul", filters.top_p, total)), to=INT64)
    nucleus = g.op("ReduceSum", inside, axis, keepdims=1)  # >= 1: nothing is ahead of the first
    top_p = g.op("GatherElements", ordered, g.op("Sub", nucleus, g.constant(1)), axis=1)
    top_p = g.op("Where", filters.uses_top_p, top_p, zero)

    largest = g.op("Slice", ordered, g.constant([0]), g.constant([1]), axis)
    return g.op("Max", top_k, top_p, g.op("Mul", filters.min_p, largest))


def _last_column(g: Graph, values: str, columns: int) -> str:
    """(batch, columns) -> (batch, 1)"""
    return g.op("Slice", values, g.constant([columns - 1]), g.constant([columns]), g.constant([1]))
