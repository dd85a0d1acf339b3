"""The serving graphs: many characters for a whole batch in one call, including sampling.

    inputs    token         int64 [batch]                 each row's last character: the next one the model reads
              state_h       f32   [layers, batch, hidden]
              state_c       f32   likewise                LSTMs only
              context       int64 [batch, n - 1]          models with n-gram tables only: the last symbols that were
                                                          read, the oldest first
              ngrams        f32   [rows, gates * hidden]  likewise: the folded tables (`rill.export.graphs.ngrams`)
              forced        int64 [time, batch]           >= 0: take this character (prompt, replay); -1: sample
              steps         int64 [batch]                 number of steps of each row; then its state stays
              uniforms      f32   [time, batch]           in [0, 1): the random number of each step's choice
              temperature   f32   [batch]                 0 is greedy
    in variants with filters also
              top_p         f32   [batch]                 1 is off
              min_p         f32   [batch]                 0 is off
              logit_bias    f32   [batch, vocab]          0 is none
              top_k         int64 [batch]                 0 is off; not in decode-top-p.onnx
              window        int64 [1]                     how many are sorted: at least the largest top_k
    outputs   tokens        int64 [time, batch]           a row's entries from its `steps` on are undefined
              next_state_h  f32   [layers, batch, hidden]
              next_state_c  f32   likewise                LSTMs only
              next_context  int64 [batch, n - 1]          models with n-gram tables only
    in the variant with log-probabilities, in nats, of the model itself (temperature 1, no filters, no bias), also
              logprobs      f32   [time, batch]           of `tokens`
              top_tokens    int64 [time, batch, top]      the most probable symbols, in order, that may be chosen
              top_logprobs  f32   [time, batch, top]

    decode.onnx            temperature only
    decode-top-p.onnx      top-p, min-p, logit bias
    decode-top-k.onnx      these and top-k, if all rows have one
    decode-logprobs.onnx   everything

A row's next `token` is its entry in `tokens` at `steps - 1`. In models with end symbols, a step that chooses one, or
is forced to, leaves the row's states as they were before it, and the row takes no further step. Rows do not influence
one another: a row's bits are the same in any batch and for any division of its steps into calls, and the variants agree
where their filters are off (tested).

One `Scan` runs the step over time, and the cost of the step decides the speed of the server. `rill.export.graphs.steps`
describes what is folded, `rill.export.graphs.arithmetic` int8, and `rill.export.graphs.choice` the choice of a
character.
"""

from collections.abc import Mapping
from itertools import chain

import numpy as np
from onnx import numpy_helper

from rill.bundle import Variant
from rill.export.graphs.arithmetic import ARITHMETICS, Arithmetic, Operand
from rill.export.graphs.builder import FLOAT, INT64, SERVING, Graph, model_bytes, tensor
from rill.export.graphs.choice import Choice
from rill.export.graphs.ends import Ends
from rill.export.graphs.ngrams import Context, InputTable
from rill.export.graphs.portable import states_of, type_of, vectors_of
from rill.export.graphs.steps import Character, Input, Output, State, step_of
from rill.export.graphs.weights import Weights
from rill.train.config import ModelConfig
from rill.vocabulary import Vocabulary


def decode_graph(
    config: ModelConfig,
    weights: Weights,
    vocabulary: Vocabulary,
    variant: Variant,
    precision: str,
    metadata: Mapping[str, str],
    table: InputTable | None = None,
) -> bytes:
    """Build and serialise a serving graph. `table` holds the n-gram tables of a model that has some."""
    vectors, hidden = vectors_of(config), config.hidden
    main = Graph("decode")
    choice = Choice(main, variant, len(vocabulary))

    # The loop carries one state per layer: a Split in the body would copy at every step.
    body = Graph("step", within=main)
    entry = [tuple(f"step.{name}_{layer}" for name, _ in vectors) for layer in range(config.layers)]
    arithmetic = ARITHMETICS[precision](body)
    context = Context(main, body, table) if table else None
    ends = Ends(main, body, vocabulary) if vocabulary.ends else None
    x = context.rows() if context else Character(arithmetic, weights.embedding, "step.token")
    active = ends.active("step.active") if ends else "step.active"
    output, exit_ = _network(arithmetic, config, weights, x, entry, active)
    logits = arithmetic.product(output, weights.linear.T, weights.linear_bias)
    emitted = choice.step(body, logits, vocabulary.never_ids, is_carried=not context)
    if context:
        context.advance("step.tokens")
    if ends:
        exit_ = ends.advance("step.tokens", entry, exit_)
    token = [tensor("step.token", INT64, ["batch"])], [tensor("step.next_token", INT64, ["batch"])]
    read, chosen = (context.entry(), context.exit()) if context else token
    before, after = ([ends.entry()], [ends.exit()]) if ends else ([], [])
    step = body.finish(
        inputs=[
            *read,
            *(tensor(name, FLOAT, ["batch", hidden]) for name in chain(*entry)),
            *before,
            tensor("step.chance", FLOAT, ["batch", 1]),
            tensor("step.forced", INT64, ["batch"]),
            tensor("step.active", FLOAT, ["batch", 1]),
        ],
        outputs=[
            *chosen,
            *(tensor(name, FLOAT, ["batch", hidden]) for name in chain(*exit_)),
            *after,
            *emitted,
        ],
    )

    by_layer = [_layers_of(main, name, config.layers) for name, _ in vectors]
    carried = [f"exit_{name}_{layer}" for layer in range(config.layers) for name, _ in vectors]
    outputs, active = choice.outputs(), _active(main)
    main.ops(
        "Scan",
        *(context.begin() if context else ["token"]),
        *chain(*zip(*by_layer, strict=True)),
        *([ends.begin()] if ends else []),
        *(choice.chance, "forced", active),
        out=[
            *(value.name.replace("step.", "last_") for value in read),
            *carried,
            *(value.name.replace("step.", "last_") for value in before),
            *(value.name for value in outputs),
        ],
        body=step,
        num_scan_inputs=3,
    )
    first_axis = main.constant([0])
    for index, (name, _) in enumerate(vectors):
        layers = [main.op("Unsqueeze", layer, first_axis) for layer in carried[index :: len(vectors)]]
        main.op("Concat", *layers, axis=0, out=f"next_{name}")
    if context:
        context.end(ends.steps(active) if ends else "steps")
    states = [(name, type_of(name), shape) for name, shape in states_of(config)]
    graph = main.finish(
        inputs=[
            tensor("token", INT64, ["batch"]),
            *(tensor(*state) for state in states),
            *([context.graph_input()] if context else []),
            tensor("forced", INT64, ["time", "batch"]),
            tensor("steps", INT64, ["batch"]),
            *choice.inputs(),
        ],
        outputs=[*outputs, *(tensor(f"next_{name}", dtype, shape) for name, dtype, shape in states)],
    )
    return model_bytes(graph, metadata, SERVING, microsoft=precision == "int8")


def _network(
    a: Arithmetic, config: ModelConfig, weights: Weights, x: Input, entry: list[State], active: str
) -> tuple[Operand, list[State]]:
    """All layers for one step: the operand of the output layer, and each layer's state after the step."""
    take_step, exit_ = step_of(config), []
    total, bound, operand = "", 0, Operand("", 0)
    for layer, state in zip(weights.layers, entry, strict=True):
        exit_.append(take_step(a, layer, x, state, active))
        h = exit_[-1][0]
        if config.residual and total:
            total, bound = a.g.op("Add", total, h), bound + 1
        else:
            total, bound = h, 1
        operand = a.operand(total, bound)
        x = Output(a, operand)
    return operand, exit_


def _layers_of(main: Graph, state: str, layers: int) -> list[str]:
    """A state (layers, batch, hidden) as one (batch, hidden) for each layer."""
    first_axis = main.constant([0])
    entry = main.ops("Split", state, out=layers, axis=0, num_outputs=layers)
    return [main.op("Squeeze", layer, first_axis) for layer in entry]


def _active(main: Graph) -> str:
    """(time, batch, 1): 1.0 until a row's limit, then 0.0."""
    one = numpy_helper.from_array(np.array([1], np.int64))
    ones = main.op("ConstantOfShape", main.op("Shape", "uniforms", start=0, end=1), value=one)
    # 0, 1, 2, …: Range needs the time as a scalar, and CUDA has no kernel to make it one.
    steps_done = main.op("CumSum", ones, main.constant(0), exclusive=1)
    last_axis = main.constant([-1])
    active = main.op("Less", main.op("Unsqueeze", steps_done, last_axis), "steps")
    return main.op("Unsqueeze", main.op("Cast", active, to=FLOAT), last_axis)
