"""Sampling inside a graph: `rill.sampling.choose` for a batch, as operators.

A variant of the serving graph contains only what its streams need. A filter that is off for a row leaves the row's
masses unchanged, so that all variants choose by the same bits there.

Probabilities are never normalised: a mass is exp((logit - largest) / temperature), the largest is 1. Every filter is a
threshold on masses, so equal masses are kept or dropped together.

Top-p keeps a mass x if S(x) < p S(0), where S(x) sums the masses above x. Few symbols are compared pair by pair. For
thousands, neither that nor a sort is affordable: a few bisections of ln x, each of which sums the masses above a point,
narrow the threshold to a range that holds few masses, and those are sorted. If they do not suffice, further ones are
sorted: the result is exact for any masses.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from rill.bundle import Variant
from rill.export.graphs.builder import BOOL, FLOAT, INT64, Graph, tensor
from rill.sampling import GREEDY_TEMPERATURE

PAIRED_SYMBOLS = 128  # up to here, all pairs are compared
FEW_SYMBOLS = 512  # up to here, a shorter search suffices
WINDOW = 64  # masses that are sorted after the search, at a time
DEEPEST = 1e30  # largest 1/x: its product with a sum of masses is still a float32
ALTERNATIVES = 20  # of each character, at most


class Choice:
    """The sampling part of a serving graph: values of the main graph, made once a call, and operators of each step.

    `chance` is (time, batch, 1); `temperature` and all other values of a row are (batch, 1).
    """

    def __init__(self, main: Graph, variant: Variant, symbols: int) -> None:
        self.variant, self.symbols, self.alternatives = variant, symbols, min(ALTERNATIVES, symbols)
        self._sorts = variant.top_k and not variant.logprobs  # every row has a top-k: what it keeps is sorted
        self._bisections = 6 if symbols <= FEW_SYMBOLS else 8
        last_axis = main.constant([-1])

        def column(value: str) -> str:
            return main.op("Unsqueeze", value, last_axis)

        def number(condition: str) -> str:
            return main.op("Cast", condition, to=FLOAT)

        zero = main.constant(0.0)
        # Greedy is u = 0 at a temperature so low that only the largest logits keep any mass: the first is chosen.
        self.chance = column(main.op("Mul", "uniforms", number(main.op("Greater", "temperature", zero))))
        self.temperature = column(main.op("Max", "temperature", main.constant(GREEDY_TEMPERATURE)))
        if variant.constrained:
            self.minus_temperature = main.op("Neg", self.temperature)
        if variant.filters:
            below_one = main.op("Sub", main.constant(1.0), "top_p")
            uses_top_p = main.op("Greater", below_one, zero)
            top_p = main.op("Max", "top_p", main.constant(1e-30))  # keeps the same symbols, and can be a divisor
        if variant.filters and not self._sorts:
            self.top_p = column(top_p)
            if symbols <= PAIRED_SYMBOLS:
                self.skips_top_p, self.min_p = column(main.op("Not", uses_top_p)), column("min_p")
            else:
                # Not quite 1: a threshold computed from a mass must not exceed it.
                not_quite = main.constant(1 - 2.0**-22)
                self.uses_top_p = column(main.op("Mul", number(uses_top_p), not_quite))
                self.not_quite_min_p = column(main.op("Mul", "min_p", not_quite))
                self._bisect(main, column, below_one)
        if variant.top_k:
            # Not Min: ONNX Runtime's Min for int64 is wrong from 2^31 on (seen in 1.31.1).
            size, one = main.constant(symbols), main.constant(1)
            is_off = main.op("Or", main.op("Equal", "top_k", main.constant(0)), main.op("Greater", "top_k", size))
            k = main.op("Where", is_off, size, "top_k")
            self.k_index = column(main.op("Sub", main.op("Min", k, "window"), one))
            if self._sorts:
                self.top_p_or_infinity = column(main.op("Where", uses_top_p, top_p, main.constant(np.inf)))
                self.min_p = column("min_p")
            else:
                self.uses_top_k = column(number(main.op("Less", k, size)))

    def _bisect(self, main: Graph, column: Callable[[str], str], below_one: str) -> None:
        """The factors by which 1/x moves down and up: half of the range's logarithm, a quarter, and so on.

        All masses up to (1 - p) / 2V together are less than what top-p drops: the search need not go deeper. Roots, not
        logarithms: their bits do not depend on the row's position in the batch.
        """
        factor = column(column(main.op("Div", main.constant(2.0 * self.symbols), below_one)))  # (batch, 1, 1)
        factor = main.op("Min", factor, main.constant(DEEPEST))
        self.deeper = [main.op("Sqrt", factor)]
        for _ in range(self._bisections):
            self.deeper.append(main.op("Sqrt", self.deeper[-1]))
        self.higher = [main.op("Reciprocal", factor) for factor in self.deeper[1:]]  # the first is only used downwards

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs of the main graph for sampling."""
        inputs = [tensor("uniforms", FLOAT, ["time", "batch"]), tensor("temperature", FLOAT, ["batch"])]
        if self.variant.filters:
            inputs += [tensor(name, FLOAT, ["batch"]) for name in ("top_p", "min_p")]
            inputs += [tensor("logit_bias", FLOAT, ["batch", self.symbols])]
        if self.variant.top_k:
            inputs += [tensor("top_k", INT64, ["batch"]), tensor("window", INT64, [1])]
        return inputs

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The outputs of the main graph except the states: the values that each step emits, over time."""
        return self._emitted("", ["time"])

    def _emitted(self, prefix: str, time: list[str]) -> list[onnx.ValueInfoProto]:
        emitted = [tensor(f"{prefix}tokens", INT64, [*time, "batch"])]
        if self.variant.logprobs:
            emitted += [
                tensor(f"{prefix}logprobs", FLOAT, [*time, "batch"]),
                tensor(f"{prefix}top_tokens", INT64, [*time, "batch", self.alternatives]),
                tensor(f"{prefix}top_logprobs", FLOAT, [*time, "batch", self.alternatives]),
            ]
        return emitted

    def step(
        self, g: Graph, logits: str, never_ids: Sequence[int], is_carried: bool = True, allowed: str = ""
    ) -> list[onnx.ValueInfoProto]:
        """Make `step.tokens` from the logits (batch, symbols); returns the values that the step emits.

        None of `never_ids` is chosen. If the loop carries the token, it is `step.next_token`, too. With `allowed`
        (batch, symbols), which is added to the logits and bans all that must not be chosen, no token is forced.
        """
        possible, never = logits, ""
        if never_ids and (self.variant.logprobs or not allowed):
            mask = np.zeros(self.symbols, np.float32)
            mask[list(never_ids)] = -np.inf
            never = g.constant(mask)
        if never and not allowed:
            possible = g.op("Add", logits, never)
        out = "step.next_token" if is_carried else "step.tokens"
        if allowed:
            token = self.choose(g, possible, "step.chance", out, allowed)
        else:
            chosen = self.choose(g, possible, "step.chance")
            is_forced = g.op("GreaterOrEqual", "step.forced", g.constant(0))
            token = g.op("Where", is_forced, "step.forced", chosen, out=out)
        if is_carried:
            g.op("Identity", token, out="step.tokens")
        if self.variant.logprobs:
            self._log_probabilities(g, logits, token, never)
        return self._emitted("step.", [])

    def _log_probabilities(self, g: Graph, logits: str, token: str, never: str) -> None:
        """Make the log-probabilities of the step's token, and of the most probable symbols that may be chosen."""
        axis = g.constant([1])
        logprobs = g.op("LogSoftmax", logits, axis=1)
        column = g.op("Unsqueeze", token, axis)
        g.op("Squeeze", g.op("GatherElements", logprobs, column, axis=1), axis, out="step.logprobs")
        if never:
            logprobs = g.op("Add", logprobs, never)
        count = g.constant([self.alternatives])
        g.ops("TopK", logprobs, count, out=["step.top_logprobs", "step.top_tokens"], axis=1)

    def _sum(self, g: Graph, values: str) -> str:
        """The sums of (batch, symbols): (batch, 1).

        Not ReduceSum: in ONNX Runtime its last bit depends on where in memory a row begins, hence on the row's position
        in the batch (seen in 1.31.1).
        """
        return g.op("MatMul", values, g.constant(np.ones((self.symbols, 1), np.float32)))

    def _mean(self, g: Graph, values: str) -> str:
        """`_sum` divided by the number of symbols: the fastest way for many symbols."""
        pooled = g.op("GlobalAveragePool", g.op("Unsqueeze", values, g.constant([1])))
        return g.op("Squeeze", pooled, g.constant([2]))

    def choose(self, g: Graph, logits: str, chance: str, out: str = "", allowed: str = "") -> str:
        """The chosen symbols `out`, int64 (batch,), from logits (batch, symbols) and chance (batch, 1).

        `allowed` (batch, symbols) is 0, or -inf for a symbol that must not be chosen.
        """
        if self.variant.filters:
            logits = g.op("Add", logits, "logit_bias")
        if allowed:
            mass = self._allowed_masses(g, logits, allowed)
        else:
            largest = g.op("ReduceMax", logits, g.constant([1]), keepdims=1)
            mass = g.op("Exp", g.op("Div", g.op("Sub", logits, largest), self.temperature))
        if self.variant.filters:
            mass = self._filter(g, mass)
        cumulative = g.op("CumSum", mass, g.constant(1))
        boundary = g.op("Mul", chance, g.op("Slice", cumulative, *_last(g, self.symbols)))
        # ArgMax returns the first maximum: the first symbol beyond the boundary.
        beyond = g.op("Cast", g.op("Greater", cumulative, boundary), to=FLOAT)
        return g.op("ArgMax", beyond, out=out, axis=1, keepdims=0)

    def _allowed_masses(self, g: Graph, logits: str, allowed: str) -> str:
        """The masses, 0 where `allowed` is -inf: the same bits as of the logits with `allowed` added.

        Not Exp of -inf: results below the smallest normal number take it five times as long (seen in 1.31.1). Symbols
        that must not be chosen get a mass of at most 1 first, which a product then removes.
        """
        largest = g.op("ReduceMax", g.op("Add", logits, allowed), g.constant([1]), keepdims=1)
        below = g.op("Relu", g.op("Sub", largest, logits))
        mass = g.op("Exp", g.op("Div", below, self.minus_temperature))
        # HardSigmoid is 1 at 0, and 0 from -1 on.
        return g.op("Mul", mass, g.op("HardSigmoid", allowed, alpha=1.0, beta=1.0))

    def _filter(self, g: Graph, mass: str) -> str:
        """The masses (batch, symbols) with those that are dropped set to 0."""
        if not self.variant.top_k:
            return self._keep_nucleus(g, mass)
        ordered, _ = g.ops("TopK", mass, "window", out=2, axis=1)
        top_k = g.op("GatherElements", ordered, self.k_index, axis=1)  # the k-th largest
        if not self._sorts:
            return self._keep_nucleus(g, _keep(g, mass, g.op("Mul", top_k, self.uses_top_k)))
        # Top-p can keep only the sorted masses and equals of the last one. Without a top-p the goal is infinite, and
        # the last sorted mass is not above the k-th.
        kept = self._sum(g, _keep(g, mass, top_k))
        cumulative = g.op("CumSum", ordered, g.constant(1))
        top_p = _crossing(g, ordered, cumulative, g.op("Mul", self.top_p_or_infinity, kept))
        return _keep(g, mass, g.op("Max", top_k, top_p, self.min_p))

    def _keep_nucleus(self, g: Graph, mass: str) -> str:
        """The masses with those that top-p and min-p drop set to 0."""
        if self.symbols <= PAIRED_SYMBOLS:
            return self._compare_pairs(g, mass)
        scaled, unit, top_p = self._search(g, mass)
        top_p = g.op("Mul", g.op("Max", top_p, g.constant(1.0)), self.uses_top_p)
        threshold = g.op("Max", top_p, g.op("Mul", self.not_quite_min_p, unit))
        return g.op("Where", g.op("GreaterOrEqual", scaled, threshold), mass, g.constant(0.0))

    def _compare_pairs(self, g: Graph, mass: str) -> str:
        """Top-p and min-p by comparing every mass with every other."""
        goal = g.op("Mul", self.top_p, self._sum(g, mass))
        # Masses above a mass, divided by it, are above 1.
        inverse = g.op("Reciprocal", g.op("Max", mass, g.constant(float(np.finfo(np.float32).tiny))))
        row, column = g.constant([1]), g.constant([2])
        pairs = g.op("Mul", g.op("Unsqueeze", mass, column), g.op("Unsqueeze", inverse, row))
        ones = g.constant(np.ones((1, 1, self.symbols), np.float32))  # a product instead of a sum, as in `_sum`
        ahead = g.op("Squeeze", g.op("MatMul", ones, _above_one(g, pairs)), row)
        inside = g.op("Or", g.op("Less", ahead, g.op("Mul", goal, inverse)), self.skips_top_p)
        kept = g.op("And", inside, g.op("GreaterOrEqual", mass, self.min_p))
        return g.op("Where", kept, mass, g.constant(0.0))

    def _search(self, g: Graph, mass: str) -> tuple[str, str, str]:
        """The masses in a unit of the row's own, that unit, and the smallest mass that top-p keeps.

        Multiplied by 1/x, masses above x are above 1: ThresholdedRelu keeps only those, at half the cost of a
        comparison and a selection.
        """
        goal = g.op("Mul", self.top_p, self._mean(g, mass))  # sums are means here
        of_goal = g.op("Div", mass, goal)
        row = g.constant([1])
        pooled = g.op("Unsqueeze", of_goal, row)  # (batch, 1, symbols), the shape that the mean takes
        unit = g.op("Mul", g.op("Unsqueeze", goal, row), self.deeper[0])
        for deeper, higher in zip(self.deeper[1:], self.higher, strict=True):
            ahead = g.op("GlobalAveragePool", _above_one(g, g.op("Mul", pooled, unit)))
            unit = g.op("Mul", unit, g.op("Where", g.op("Less", ahead, unit), deeper, higher))
        # The threshold is within one more step up or down.
        unit = g.op("Squeeze", g.op("Mul", unit, self.deeper[-1]), row)
        scaled = g.op("Mul", of_goal, unit)
        start = g.op("Squeeze", g.op("Mul", self.higher[-1], self.higher[-1]), row)
        sum_ = g.op("Mul", unit, g.constant(float(self.symbols)))
        return scaled, g.op("Div", unit, goal), self._walk(g, _above_one(g, scaled), sum_, start)

    def _walk(self, g: Graph, mass: str, goal: str, unit: str) -> str:
        """The mass at which the sum of all masses, from the largest down, reaches the goal.

        The sum of all masses above 1 in `unit` is below the goal. The largest of the others are sorted, WINDOW at a
        time: the first ones almost always suffice.
        """
        walk = Graph("walk", within=g)
        unit_in, unit_out, threshold, again = (f"walk.{name}" for name in ("unit", "next_unit", "threshold", "again"))
        scaled = walk.op("Mul", mass, unit_in)
        above = _above_one(walk, scaled)
        ahead = walk.op("Mul", self._mean(walk, above), walk.constant(float(self.symbols)))
        ordered, _ = walk.ops("TopK", walk.op("Sub", scaled, above), walk.constant([WINDOW]), out=2, axis=1)
        cumulative = walk.op("Add", ahead, walk.op("CumSum", ordered, walk.constant(1)))
        scaled_goal = walk.op("Mul", goal, unit_in)
        crossing = _crossing(walk, ordered, cumulative, scaled_goal)
        # If the masses above 1 reach the goal, equals of the last mass of the previous window did.
        one = walk.constant(1.0)
        crossing = walk.op("Where", walk.op("Less", ahead, scaled_goal), crossing, one)
        walk.op("Div", crossing, unit_in, out=threshold)
        # A row whose goal is further down continues below the last of these.
        last, reached = (walk.op("Slice", values, *_last(walk, WINDOW)) for values in (ordered, cumulative))
        is_more = walk.op("Greater", walk.op("Mul", last, self.uses_top_p), walk.constant(0.0))
        is_further = walk.op("And", is_more, walk.op("Less", reached, scaled_goal))
        further = walk.op("Mul", walk.op("Div", unit_in, last), walk.constant(1 + 2.0**-22))
        walk.op("Where", is_further, further, unit_in, out=unit_out)
        any_further = walk.op("ReduceMax", walk.op("Cast", is_further, to=INT64), keepdims=0)
        walk.op("Cast", any_further, to=BOOL, out=again)
        body = walk.finish(
            inputs=[
                tensor("walk.count", INT64, []),
                tensor("walk.condition", BOOL, []),
                tensor(unit_in, FLOAT, ["batch", 1]),
                tensor("walk.last_threshold", FLOAT, ["batch", 1]),
            ],
            outputs=[
                tensor(again, BOOL, []),
                tensor(unit_out, FLOAT, ["batch", 1]),
                tensor(threshold, FLOAT, ["batch", 1]),
            ],
        )
        _, found = g.ops("Loop", "", "", unit, goal, out=2, body=body)
        return found


def _crossing(g: Graph, ordered: str, cumulative: str, goal: str) -> str:
    """The first sorted mass whose cumulative sum reaches the goal (batch, 1), or the last mass."""
    before = g.op("Slice", cumulative, g.constant([0]), g.constant([-1]), g.constant([1]))
    short = g.op("Cast", g.op("Less", before, goal), to=INT64)
    return g.op("GatherElements", ordered, g.op("ReduceSum", short, g.constant([1]), keepdims=1), axis=1)


def _keep(g: Graph, mass: str, threshold: str) -> str:
    """The masses with those below the threshold (batch, 1) set to 0."""
    return g.op("Where", g.op("GreaterOrEqual", mass, threshold), mass, g.constant(0.0))


def _above_one(g: Graph, values: str) -> str:
    """The values with those up to 1 set to 0."""
    return g.op("ThresholdedRelu", values, alpha=1.0)


def _last(g: Graph, columns: int) -> tuple[str, str, str]:
    """Slice's arguments for the last column."""
    return g.constant([columns - 1]), g.constant([columns]), g.constant([1])
