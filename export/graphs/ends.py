"""End symbols in the serving graph: a step that chooses one leaves its row as it was before, and the row stays there.

So after a call the row has the state right after the text, whose last symbol is still to be read: the end symbol is in
no text, and the row can go on from there. Graphs of models without end symbols have none of this.
"""

import numpy as np
import onnx

from rill.export.graphs.builder import BOOL, FLOAT, INT64, Graph, tensor
from rill.export.graphs.steps import Moves, State
from rill.vocabulary import Vocabulary


class Ends:
    """The loop carries whether a row goes on, float32 (batch, 1): 1.0 until it has chosen an end symbol."""

    def __init__(self, main: Graph, body: Graph, vocabulary: Vocabulary) -> None:
        self._main, self._body = main, body
        goes_on = np.ones(len(vocabulary), np.float32)
        goes_on[list(vocabulary.end_ids)] = 0
        self._goes_on = goes_on

    def entry(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, before a step."""
        return [tensor("step.goes_on", FLOAT, ["batch", 1])]

    def exit(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, after a step."""
        return [tensor("step.next_goes_on", FLOAT, ["batch", 1])]

    def begin(self) -> list[str]:
        """What the loop carries before the first step: ones."""
        g = self._main  # made of an input: CUDA has no kernel that makes the shape (batch, 1)
        return [g.op("Unsqueeze", g.op("Cast", g.op("Equal", "steps", "steps"), to=FLOAT), g.constant([1]))]

    def moves(self, active: str) -> Moves:
        """How states change: in `active` rows that have not chosen an end symbol."""
        return Moves(self._body, self._body.op("Mul", active, "step.goes_on"))

    def advance(self, token: str, before: list[State], after: list[State]) -> list[State]:
        """The states after a step, which has chosen `token`."""
        g = self._body
        goes_on = g.op("Gather", g.constant(self._goes_on[:, None]), token)
        g.op("Mul", "step.goes_on", goes_on, out="step.next_goes_on")
        moves = g.op("Cast", goes_on, to=BOOL)
        pairs = [list(zip(*layer, strict=True)) for layer in zip(before, after, strict=True)]
        return [tuple(g.op("Where", moves, new, old) for old, new in layer) for layer in pairs]

    def steps(self, active: str) -> str:
        """The steps that each row has taken, int64 (batch,), from `active` (time, batch, 1)."""
        g, last_axis = self._main, self._main.constant([-1])
        ends = g.op("Gather", g.constant(1 - self._goes_on), "tokens")  # (time, batch)
        before = g.op("Equal", g.op("CumSum", ends, g.constant(0)), g.constant(0.0))
        taken = g.op("Mul", g.op("Squeeze", active, last_axis), g.op("Cast", before, to=FLOAT))
        return g.op("Cast", g.op("ReduceSum", taken, g.constant([0]), keepdims=0), to=INT64)
