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

    in variants for texts that must match, without `forced`, also
              automaton, allowed, transitions, continues, reads, and the output automata:
              see `rill.export.graphs.constraint`

    decode.onnx            temperature only
    decode-top-p.onnx      top-p, min-p, logit bias
    decode-top-k.onnx      these and top-k, if all rows have one
    decode-logprobs.onnx   everything
    decode-constrained.onnx, decode-constrained-logprobs.onnx
                           likewise decode.onnx and decode-logprobs.onnx, for texts that must match

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
import onnx
from onnx import numpy_helper

from rill.bundle import Variant
from rill.export.graphs.arithmetic import ARITHMETICS, Arithmetic, Operand
from rill.export.graphs.builder import FLOAT, INT64, SERVING, Graph, model_bytes, tensor
from rill.export.graphs.choice import Choice
from rill.export.graphs.constraint import Constraint
from rill.export.graphs.ends import Ends
from rill.export.graphs.ngrams import Context, InputTable
from rill.export.graphs.portable import states_of, type_of, vectors_of
from rill.export.graphs.steps import Character, Input, LateMoves, Moves, Output, State, step_of
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
    graph = _Loop(config, weights, vocabulary, variant, table).build(precision)
    return model_bytes(graph, metadata, SERVING, microsoft=precision == "int8")


class _Loop:
    """A serving graph in the making: the main graph, and the body of its Scan, the step.

    `_context` are n-gram tables, `_ending` is what ends texts in the graph, if the model and the variant have that.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, vocabulary: Vocabulary, variant: Variant, table: InputTable | None
    ) -> None:
        self._config, self._weights, self._vocabulary = config, weights, vocabulary
        self._main = main = Graph("decode")
        self._choice = Choice(main, variant, len(vocabulary))
        self._body = body = Graph("step", within=main)
        # The loop carries one state per layer: a Split in the body would copy at every step.
        self._names = [name for name, _ in vectors_of(config)]
        self._entry = [tuple(f"step.{name}_{layer}" for name in self._names) for layer in range(config.layers)]
        self._exit = self._entry
        self._context = Context(main, body, table) if table else None
        self._constraint = Constraint(main, body, len(vocabulary)) if variant.constrained else None
        ends = Ends(main, body, vocabulary) if vocabulary.ends and not self._constraint else None
        self._ending = self._constraint or ends

    def build(self, precision: str) -> onnx.GraphProto:
        """The graph."""
        emitted = self._step(precision)
        step = self._finish_body(emitted)
        active = self._scan(step)
        self._make_states(active)
        states = [(name, type_of(name), shape) for name, shape in states_of(self._config)]
        return self._main.finish(
            inputs=[
                tensor("token", INT64, ["batch"]),
                *(tensor(*state) for state in states),
                *([self._context.graph_input()] if self._context else []),
                *(self._constraint.inputs() if self._constraint else [tensor("forced", INT64, ["time", "batch"])]),
                tensor("steps", INT64, ["batch"]),
                *self._choice.inputs(),
            ],
            outputs=[
                *self._choice.outputs(),
                *([self._constraint.output()] if self._constraint else []),
                *(tensor(f"next_{name}", dtype, shape) for name, dtype, shape in states),
            ],
        )

    def _step(self, precision: str) -> list[onnx.ValueInfoProto]:
        """Make one step; returns the values that it emits."""
        body, vocabulary, weights = self._body, self._vocabulary, self._weights
        context, constraint, ending = self._context, self._constraint, self._ending
        arithmetic = ARITHMETICS[precision](body)
        x = context.rows() if context else Character(arithmetic, weights.embedding, "step.token")
        moves = ending.moves("step.active") if ending else Moves(body, "step.active")
        output, self._exit = _network(arithmetic, self._config, weights, x, self._entry, moves)
        logits = arithmetic.product(output, weights.linear.T, weights.linear_bias)
        allowed = constraint.allowed() if constraint else ""
        emitted = self._choice.step(body, logits, vocabulary.never_ids, is_carried=not context, allowed=allowed)
        if context:
            context.advance("step.tokens")
        if ending:
            self._exit = ending.advance("step.tokens", self._entry, self._exit)
        return [*emitted, *([constraint.emitted()] if constraint else [])]

    def _finish_body(self, emitted: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """The body of the loop: what it carries, what it reads for each step, what it emits."""
        before, after = (self._ending.entry(), self._ending.exit()) if self._ending else ([], [])
        return self._body.finish(
            inputs=[
                *self._read(),
                *(tensor(name, FLOAT, ["batch", self._config.hidden]) for name in chain(*self._entry)),
                *before,
                tensor("step.chance", FLOAT, ["batch", 1]),
                *([] if self._constraint else [tensor("step.forced", INT64, ["batch"])]),
                tensor("step.active", FLOAT, ["batch", 1]),
            ],
            outputs=[
                *(self._context.exit() if self._context else [tensor("step.next_token", INT64, ["batch"])]),
                *(tensor(name, FLOAT, ["batch", self._config.hidden]) for name in chain(*self._exit)),
                *after,
                *emitted,
            ],
        )

    def _read(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries of the symbols that were read."""
        return self._context.entry() if self._context else [tensor("step.token", INT64, ["batch"])]

    def _scan(self, step: onnx.GraphProto) -> str:
        """Run the step over time; returns which steps each row may take, (time, batch, 1)."""
        main, context, ending = self._main, self._context, self._ending
        by_layer = [_layers_of(main, name, self._config.layers) for name in self._names]
        outputs, active = self._choice.outputs(), _active(main)
        over_time = [self._choice.chance, *([] if self._constraint else ["forced"]), active]
        main.ops(
            "Scan",
            *(context.begin() if context else ["token"]),
            *chain(*zip(*by_layer, strict=True)),
            *(ending.begin() if ending else []),
            *over_time,
            out=[
                *(value.name.replace("step.", "last_") for value in self._read()),
                *self._carried(),
                *(value.name.replace("step.", "last_") for value in (ending.entry() if ending else [])),
                *(value.name for value in outputs),
                *([self._constraint.output().name] if self._constraint else []),
            ],
            body=step,
            num_scan_inputs=len(over_time),
        )
        return active

    def _carried(self) -> list[str]:
        """The model's states after the loop, by layer."""
        return [f"exit_{name}_{layer}" for layer in range(self._config.layers) for name in self._names]

    def _make_states(self, active: str) -> None:
        """Make the states after the call."""
        main = self._main
        first_axis, carried = main.constant([0]), self._carried()
        for index, name in enumerate(self._names):
            layers = [main.op("Unsqueeze", layer, first_axis) for layer in carried[index :: len(self._names)]]
            main.op("Concat", *layers, axis=0, out=f"next_{name}")
        if self._context:
            self._context.end(self._ending.steps(active) if self._ending else "steps")


def _network(
    a: Arithmetic, config: ModelConfig, weights: Weights, x: Input, entry: list[State], moves: Moves | LateMoves
) -> tuple[Operand, list[State]]:
    """All layers for one step: the operand of the output layer, and each layer's state after the step."""
    take_step, exit_ = step_of(config), []
    total, bound, operand = "", 0, Operand("", 0)
    for layer, state in zip(weights.layers, entry, strict=True):
        exit_.append(take_step(a, layer, x, state, moves))
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
