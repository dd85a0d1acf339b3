"""The portable graph: logits for whole texts, in standard ONNX operators, for any runtime.

inputs    tokens        int64 [batch, time]
          state_h       f32   [layers * directions, batch, hidden]   by layer, then by direction, as in PyTorch
          state_c       likewise                                     LSTMs only
          context       int64 [batch, n - 1]                         models with n-gram tables only: the last symbols
                                                                     that were read, the oldest first; zeros at first
outputs   logits        f32   [batch, time, vocab]; taggers: [batch, time, labels]
          next_state_h  as state_h   the state after the last step: the next call's `state_h`
          next_state_c  as state_c   LSTMs only
          next_context  as context   models with n-gram tables only

Batch and time may be 0: then the logits are empty, and the states are returned as they are.

The second direction of a bidirectional model starts at the end of the text: its state enters there and leaves at the
beginning.

The rows of the n-gram tables (`rill.ngrams`), the initializers `ngrams.k.weight`, are added to the symbol's own row of
the embedding, or one-hot vector; their indices are Mul, Add and Mod of int64.

In int8 the matrices are int8 initializers behind DequantizeLinear, with one scale for each output (embedding and n-gram
tables: for each row); everything else is float32.
"""

from collections.abc import Mapping
from functools import reduce

import numpy as np
import onnx
from onnx import numpy_helper

from rill.bundle import CONTEXT, States
from rill.export.graphs.arithmetic import TABLE_STEPS, WEIGHT_STEPS, Quantized, is_table
from rill.export.graphs.builder import BOOL, FLOAT, INT64, PORTABLE, Graph, Shape, model_bytes, tensor
from rill.export.graphs.weights import Layer, Matrix, Weights
from rill.ngrams import multipliers, rows_of
from rill.train.config import ModelConfig

END = int(np.iinfo(np.int64).max)  # as the end of a slice: the end of the axis
OPERATORS = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN"}  # RNN's activation is tanh unless told otherwise
# ONNX's order of PyTorch's gates: r, z, n become z, r, h (GRU); i, f, g, o become i, o, f, c (LSTM).
GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "rnn": (0,)}


def states_of(config: ModelConfig) -> States:
    """The names and shapes of the states of a model's graphs; each `state_X` has an output `next_state_X`."""
    context: States = (("context", ("batch", config.context_length)),) if config.ngrams > 1 else ()
    return (*vectors_of(config), *context)


def vectors_of(config: ModelConfig) -> States:
    """The states without the context."""
    shape = (config.layers * config.directions, "batch", config.hidden)
    return tuple((f"state_{part}", shape) for part in config.state_parts)


def type_of(state: str) -> int:
    """The ONNX type of a state by its name."""
    return INT64 if state == CONTEXT else FLOAT


def model_graph(config: ModelConfig, weights: Weights, precision: str, metadata: Mapping[str, str]) -> bytes:
    """Build and serialise the portable graph."""
    main, states = Graph("model"), states_of(config)
    outputs: list[tuple[str, int, Shape]] = [("logits", FLOAT, ("batch", "time", len(weights.linear)))]
    outputs += [(f"next_{name}", type_of(name), shape) for name, shape in states]

    def branch(graph: Graph) -> onnx.GraphProto:
        return graph.finish([], [tensor(f"{graph.name}.{name}", dtype, shape) for name, dtype, shape in outputs])

    # Runtimes crash, or answer wrongly, in recurrent operators of length 0.
    main.ops(
        "If",
        main.op("Cast", main.op("Size", "tokens"), to=BOOL),
        out=[name for name, _, _ in outputs],
        then_branch=branch(_texts(main, config, weights, precision)),
        else_branch=branch(_nothing(main, config, len(weights.linear))),
    )
    return model_bytes(
        main.finish(
            inputs=[
                tensor("tokens", INT64, ["batch", "time"]),
                *(tensor(name, type_of(name), shape) for name, shape in states),
            ],
            outputs=[tensor(*output) for output in outputs],
        ),
        metadata,
        PORTABLE,
    )


def _nothing(main: Graph, config: ModelConfig, outputs: int) -> Graph:
    """The branch for no text: no logits, and the states as they were."""
    g = Graph("nothing", within=main)
    shape = g.op("Concat", g.op("Shape", "tokens"), g.constant([outputs]), axis=0)
    # Some runtimes do not know the default value.
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    g.op("ConstantOfShape", shape, value=zero, out="nothing.logits")
    for name, _ in states_of(config):
        g.op("Identity", name, out=f"nothing.next_{name}")
    return g


def _texts(main: Graph, config: ModelConfig, weights: Weights, precision: str) -> Graph:
    """The branch for texts of at least one symbol."""
    states = vectors_of(config)
    g = Graph("texts", within=main)
    by_time = g.op("Transpose", "tokens", perm=[1, 0])  # ONNX's recurrent operators take time first
    if weights.embedding is None:
        # OneHot(indices, depth, [off, on]) -> (time, batch, vocab)
        off_on = g.constant(np.array([0, 1], np.float32))
        x = g.op("OneHot", by_time, g.constant(weights.vocabulary_size), off_on)
    else:
        x = g.op("Gather", _matrix(g, "embedding.weight", weights.embedding, 0, precision), by_time)
    if weights.ngrams:
        x = _add_ngrams(g, weights, config.ngram_rows, x, by_time, precision)

    # Two directions are folded into one axis (0 keeps an axis); the axis of a single one is removed.
    fold = g.constant([0, 0, config.features] if config.bidirectional else [1])
    # By part of the state and by layer, each (directions, batch, hidden).
    each = g.constant([config.directions] * config.layers)
    entry = [g.ops("Split", name, each, out=config.layers, axis=0) for name, _ in states]
    exit_ = []
    for index in range(config.layers):
        directions = weights.layers[index * config.directions : (index + 1) * config.directions]
        outputs, *final = _layer(g, precision, config, index, directions, x, [part[index] for part in entry])
        if config.bidirectional:  # (time, directions, batch, hidden) -> (time, batch, directions * hidden)
            h = g.op("Reshape", g.op("Transpose", outputs, perm=[0, 2, 1, 3]), fold)
        else:
            h = g.op("Squeeze", outputs, fold)
        x = g.op("Add", x, h) if config.residual and index else h
        exit_.append(final)
    for (name, _), layers in zip(states, zip(*exit_, strict=True), strict=True):
        if config.layers > 1:
            g.op("Concat", *layers, axis=0, out=f"texts.next_{name}")
        else:
            g.op("Identity", *layers, out=f"texts.next_{name}")

    by_batch = g.op("Transpose", x, perm=[1, 0, 2])
    # Three dimensions: with a plain matrix, ONNX Runtime fuses DequantizeLinear and MatMul into a product that also
    # rounds the states (seen in 1.31.1).
    product = g.op("MatMul", by_batch, _matrix(g, "linear.weight", weights.linear.T[None], 2, precision))
    g.op("Add", product, g.constant(weights.linear_bias.astype(np.float32), "linear.bias"), out="texts.logits")
    return g


def _add_ngrams(g: Graph, weights: Weights, hashed_rows: int, x: str, by_time: str, precision: str) -> str:
    """The input x (time, batch, features) with the rows of the n-gram tables; makes `next_context`, too."""
    context, first = len(weights.ngrams), g.constant([0])
    seen = g.op("Concat", g.op("Transpose", CONTEXT, perm=[1, 0]), by_time, axis=0)
    # The symbols of 0, 1, 2, … positions before each, (time, batch).
    aged = [by_time] + [
        g.op("Slice", seen, g.constant([context - age]), g.constant([-age]), first) for age in range(1, context + 1)
    ]
    for order, table in enumerate(weights.ngrams, start=2):
        factors = multipliers(order, weights.vocabulary_size)
        terms = [g.op("Mul", ids, g.constant(factor)) for ids, factor in zip(aged, factors, strict=False)]
        total = reduce(lambda total, term: g.op("Add", total, term), terms)
        rows = g.op("Mod", total, g.constant(rows_of(order, weights.vocabulary_size, hashed_rows)))
        x = g.op("Add", x, g.op("Gather", _matrix(g, f"ngrams.{order}.weight", table, 0, precision), rows))
    after = g.op("Slice", seen, g.constant([-context]), g.constant([END]), first)
    g.op("Transpose", after, perm=[1, 0], out=f"texts.next_{CONTEXT}")
    return x


def _layer(
    g: Graph,
    precision: str,
    config: ModelConfig,
    index: int,
    directions: tuple[Layer, ...],
    x: str,
    entry: list[str],
) -> list[str]:
    """A layer over time in all its directions: outputs (time, directions, batch, hidden), then the final states."""

    def stack(matrices: list[Matrix]) -> Matrix:
        return np.stack([_gates(config.cell, matrix) for matrix in matrices])  # (directions, gates * hidden, ...)

    biases = [stack([layer.input_bias for layer in directions]), stack([layer.hidden_bias for layer in directions])]
    attributes: dict[str, int | str] = {"hidden_size": config.hidden}
    if config.cell == "gru":  # 1: the reset gate scales the product, as in PyTorch; 0: the state before it
        attributes["linear_before_reset"] = int(config.reset == "after")
    if config.bidirectional:
        attributes["direction"] = "bidirectional"
    return g.ops(
        OPERATORS[config.cell],
        x,
        _matrix(g, f"rnn.weight_ih_l{index}", stack([layer.input for layer in directions]), 1, precision),
        _matrix(g, f"rnn.weight_hh_l{index}", stack([layer.hidden for layer in directions]), 1, precision),
        g.constant(np.concatenate(biases, axis=1).astype(np.float32), f"rnn.bias_l{index}"),
        "",  # sequence_lens: all rows have the full length
        *entry,
        out=1 + len(entry),
        **attributes,
    )


def _matrix(g: Graph, name: str, values: Matrix, outputs: int, precision: str) -> str:
    """A constant matrix; in int8 with a scale for each index of its axis `outputs`."""
    if precision == "fp32":
        return g.constant(values.astype(np.float32), name)
    quantized = Quantized.of(values, TABLE_STEPS if is_table(name) else WEIGHT_STEPS, outputs)
    scale = g.constant(quantized.scale, f"{name}.scale")
    return g.op("DequantizeLinear", g.constant(quantized.integers, f"{name}.int8"), scale, axis=outputs)


def _gates(cell: str, values: Matrix) -> Matrix:
    """The gates, stacked along the first axis, in ONNX's order."""
    gates = np.split(values, len(GATES[cell]), axis=0)
    return np.concatenate([gates[position] for position in GATES[cell]], axis=0)
