"""Texts that must match: the automata of all rows of a batch, inside the serving graph.

    inputs    automaton     int64 [batch]           each row's state: a row of the tables
              allowed       f32   [states, vocab]   0, or -inf: the symbol must not follow
              transitions   int64 [states * vocab]  the next state, at state * vocab + symbol
              continues     f32   [states, 1]       0.0: nothing may follow, the row takes no further step
              reads         bool  [states, 1]       False: a terminator led here, which is not part of the text
    outputs   automata      int64 [time, batch]     the state after each step

The tables hold the automata of many texts side by side. A state without continuation leads to itself, and allows all
symbols: what its row then chooses is not looked at. Symbols that are never chosen are forbidden in all others.

A row's next `automaton` is its entry in `automata` at `steps - 1`. A step that chooses a terminator leaves the row's
states as they were before it: they are those right after the text, whose last symbol is still to be read.
"""

import onnx

from rill.export.graphs.builder import BOOL, FLOAT, INT64, Graph, tensor
from rill.export.graphs.steps import LateMoves, State

AUTOMATON, AUTOMATA = "automaton", "automata"


class Constraint:
    """The loop carries the state of each row's automaton, and whether the row goes on, float32 (batch, 1)."""

    def __init__(self, main: Graph, body: Graph, symbols: int) -> None:
        self._main, self._body, self._symbols = main, body, symbols
        self._moves, self._active = LateMoves(body), ""

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs of the main graph."""
        return [
            tensor(AUTOMATON, INT64, ["batch"]),
            tensor("allowed", FLOAT, ["states", self._symbols]),
            tensor("transitions", INT64, ["transitions"]),
            tensor("continues", FLOAT, ["states", 1]),
            tensor("reads", BOOL, ["states", 1]),
        ]

    def output(self) -> onnx.ValueInfoProto:
        """The output of the main graph."""
        return tensor(AUTOMATA, INT64, ["time", "batch"])

    def emitted(self) -> onnx.ValueInfoProto:
        """What a step emits."""
        return tensor(f"step.{AUTOMATA}", INT64, ["batch"])

    def entry(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, before a step."""
        return [tensor("step.automaton", INT64, ["batch"]), tensor("step.goes_on", FLOAT, ["batch", 1])]

    def exit(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, after a step."""
        return [tensor("step.next_automaton", INT64, ["batch"]), tensor("step.next_goes_on", FLOAT, ["batch", 1])]

    def begin(self) -> list[str]:
        """What the loop carries before the first step."""
        return [AUTOMATON, self._main.op("Gather", "continues", AUTOMATON)]

    def moves(self, active: str) -> LateMoves:
        """How states change: in `active` rows whose text has not ended; `advance` says in which."""
        self._active = self._body.op("Mul", active, "step.goes_on")
        return self._moves

    def allowed(self) -> str:
        """What to add to the logits of a step, (batch, vocab)."""
        return self._body.op("Gather", "allowed", "step.automaton")

    def advance(self, token: str, before: list[State], after: list[State]) -> list[State]:
        """The states of the model after a step, which has chosen `token`."""
        g = self._body
        index = g.op("Add", g.op("Mul", "step.automaton", g.constant(self._symbols)), token)
        state = g.op("Gather", "transitions", index, out="step.next_automaton")
        g.op("Identity", state, out=f"step.{AUTOMATA}")
        g.op("Gather", "continues", state, out="step.next_goes_on")
        reads = g.op("Cast", g.op("Gather", "reads", state), to=FLOAT)
        moved = iter(self._moves.finish(g.op("Mul", self._active, reads)))
        return [tuple(next(moved) for _ in layer) for layer in before]

    def steps(self, active: str) -> str:
        """The steps that each row has taken, int64 (batch,), from `active` (time, batch, 1)."""
        g, first_axis, last_axis = self._main, self._main.constant([0]), self._main.constant([-1])
        states = g.op("Concat", g.op("Unsqueeze", AUTOMATON, first_axis), AUTOMATA, axis=0)
        before = g.op("Slice", states, g.constant([0]), g.constant([-1]), first_axis)
        reads = g.op("Cast", g.op("Gather", "reads", AUTOMATA), to=FLOAT)  # (time, batch, 1)
        taken = g.op("Mul", active, g.op("Mul", g.op("Gather", "continues", before), reads))
        taken = g.op("Squeeze", taken, last_axis)
        return g.op("Cast", g.op("ReduceSum", taken, first_axis, keepdims=0), to=INT64)
