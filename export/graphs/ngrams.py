"""N-gram tables in the serving graph: all rows of a symbol's input by one Gather, and their indices by few nodes.

`rill.ngrams` defines which rows of which tables a model adds to its input. In the serving graph the tables are folded,
as the symbol's own row is: a row of the first layer's gates. They are one graph input, `ngrams`, because they are far
larger than all else, and the four graphs of a bundle share them. They are float32 in int8 too: a row is read, not
multiplied, and to scale an int8 row takes longer than to read a float32 one. Further:

- Where every k-gram has a row of its own, that row includes those of all shorter ones and of the symbol itself: of the
  orders without sharing, only the longest has rows in `ngrams`.
- The rows of H hashed orders alternate: row r of the i-th is row H r + i of `ngrams`. So (H s + i) mod (H rows) is the
  index for the sum s of an n-gram, without a further addition. The rows of the longest exact order follow.
- A symbol's terms of the sums of its own n-grams and of the following ones are constants, which one Gather reads. The
  loop carries the sums of the next symbols as far as they are known.

Factors are reduced by the modulus, so all sums are small.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from rill.bundle import MAX_NGRAMS_BYTES, NGRAMS, ngrams_header
from rill.export.errors import UnsupportedError
from rill.export.graphs.builder import FLOAT, INT64, Graph, tensor
from rill.export.graphs.steps import Rows, products_of
from rill.export.graphs.weights import Matrix, Weights
from rill.ngrams import folded_orders, folded_rows, multipliers
from rill.train.config import ModelConfig

Ids = NDArray[np.int64]


class Layout:
    """Where the rows of a model are in `ngrams`. `orders` are those with rows there: the longest exact one, and all
    hashed ones, of `hashed_rows` each."""

    def __init__(self, symbols: int, ngrams: int, hashed_rows: int) -> None:
        self.symbols, self.ngrams, self.hashed_rows = symbols, ngrams, hashed_rows
        self.exact, *hashed = folded_orders(symbols, ngrams)
        self.hashed = tuple(hashed)
        self.orders = (*self.hashed, self.exact)
        self.first_exact_row = len(self.hashed) * hashed_rows

    def fold(self, weights: Weights, W: Matrix, bias: Matrix) -> NDArray[np.float32]:
        """Make `ngrams` (rows, columns): x W of all rows x, and the bias in the exact rows."""
        exact = (W if weights.embedding is None else weights.embedding @ W) + bias
        for order in range(2, self.exact + 1):  # the newest symbol is the last digit of a row
            exact = np.tile(exact, (self.symbols, 1)) + weights.ngrams[order - 2] @ W
        hashed = [weights.ngrams[order - 2] @ W for order in self.hashed]
        alternating = [np.stack(hashed, axis=1).reshape(-1, W.shape[1])] if hashed else []
        return np.concatenate([*alternating, exact]).astype(np.float32)

    def factors(self) -> Ids:
        """(ngrams, orders): what a symbol counts for in the sums that end with it, and 1, 2, … symbols later."""
        factors = np.zeros((self.ngrams, len(self.orders)), np.int64)
        for index, order in enumerate(self.hashed):
            for age, factor in enumerate(multipliers(order, self.symbols)):
                factors[age, index] = factor % self.hashed_rows * len(self.hashed)
        factors[: self.exact, -1] = [self.symbols**age for age in range(self.exact)]
        return factors

    def offsets(self) -> Ids:
        """(orders,): the sums of n-grams of symbol 0."""
        return np.array([*range(len(self.hashed)), self.first_exact_row])

    def moduli(self) -> Ids:
        """(orders,): what the sums are reduced by, which changes nothing for the exact order."""
        end = self.first_exact_row + self.symbols**self.exact
        return np.array([*[self.first_exact_row] * len(self.hashed), end])


@dataclass(frozen=True)
class InputTable:
    """The folded tables of a model."""

    layout: Layout
    widths: tuple[int, ...]  # columns of each product that a step takes of its input
    values: NDArray[np.float32]  # (rows, columns): `ngrams`

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights) -> "InputTable":
        """Fold the tables of a model that has some. Raises UnsupportedError for tables too large for a bundle."""
        layout = Layout(weights.vocabulary_size, config.ngrams, config.ngram_rows)
        products = products_of(config, weights.layers[0])
        size = (
            4 * folded_rows(layout.symbols, layout.ngrams, layout.hashed_rows) * sum(len(part) for _, part in products)
        )
        if size + 1024 > MAX_NGRAMS_BYTES:
            raise UnsupportedError(
                f"the n-gram tables, folded into rows of the gates, take {size} bytes, more than {MAX_NGRAMS_BYTES}; "
                "train with fewer --ngram-rows, fewer --ngrams or a smaller --hidden"
            )
        W, bias = (np.concatenate(parts, axis=-1) for parts in zip(*products, strict=True))
        return cls(layout, tuple(len(part) for _, part in products), layout.fold(weights, W, bias))

    def file(self) -> bytes:
        """The content of ngrams.npy."""
        return ngrams_header(*self.values.shape) + self.values.astype("<f4").tobytes()


class Context:
    """The context in a serving graph: what the loop carries of it, and what enters and leaves a call.

    The loop carries the indices of the next symbol's rows, and a sum for each symbol after it that they count for.
    """

    def __init__(self, main: Graph, body: Graph, table: InputTable) -> None:
        self._main, self._body, self._table, self._layout = main, body, table, table.layout
        self._factors, self._offsets = self._layout.factors(), self._layout.offsets()
        self._moduli = main.constant(self._layout.moduli()) if self._layout.hashed else ""
        names = ["rows", *(f"sum_{age}" for age in range(1, self._layout.ngrams))]
        self._entry = [f"step.{name}" for name in names]
        self._exit = [f"step.next_{name}" for name in names]

    def graph_input(self) -> onnx.ValueInfoProto:
        """The input of the main graph for the tables."""
        return tensor(NGRAMS, FLOAT, self._table.values.shape)

    def entry(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, before a step."""
        return [tensor(name, INT64, ["batch", len(self._offsets)]) for name in self._entry]

    def exit(self) -> list[onnx.ValueInfoProto]:
        """What the loop carries, after a step."""
        return [tensor(name, INT64, ["batch", len(self._offsets)]) for name in self._exit]

    def begin(self) -> list[str]:
        """Make what the loop carries before the first step, of `context` and `token`."""
        g, ngrams, orders = self._main, self._layout.ngrams, len(self._offsets)
        self._seen = g.op("Concat", "context", g.op("Unsqueeze", "token", g.constant([1])), axis=1)
        factors = np.zeros((1, ngrams, orders, ngrams), np.int64)  # by age of the sum, and by symbol, the newest last
        for age in range(ngrams):
            factors[0, age, :, age:] = self._factors[age:][::-1].T
        offsets = np.zeros(ngrams * orders, np.int64)
        offsets[:orders] = self._offsets
        terms = g.op("Mul", g.op("Unsqueeze", self._seen, g.constant([1, 2])), g.constant(factors))
        sums = g.op("Reshape", g.op("ReduceSum", terms, g.constant([3]), keepdims=0), g.constant([-1, ngrams * orders]))
        first, *others = g.ops("Split", g.op("Add", sums, g.constant(offsets)), out=ngrams, axis=1, num_outputs=ngrams)
        return [g.op("Mod", first, self._moduli) if self._moduli else first, *others]

    def rows(self) -> Rows:
        """The first layer's input in a step."""
        g, widths = self._body, self._table.widths
        # (batch, orders, columns), summed over the orders. A product takes a third of ReduceSum's time; that of a
        # vector has no axis for it.
        rows = g.op("Gather", NGRAMS, self._entry[0])
        total = g.op("MatMul", g.constant(np.ones(len(self._offsets), np.float32)), rows)
        if len(widths) == 1:
            return Rows([total])
        return Rows(g.ops("Split", total, g.constant(list(widths)), out=len(widths), axis=1))

    def advance(self, token: str) -> None:
        """Make what the loop carries after a step, which has chosen `token`."""
        g, ngrams = self._body, self._layout.ngrams
        terms = np.arange(self._layout.symbols)[:, None] * self._factors.ravel()
        terms[:, : len(self._offsets)] += self._offsets
        own, *later = g.ops(
            "Split",
            g.op("Gather", g.constant(terms), token),
            out=[*(f"step.terms_{age}" for age in range(ngrams - 1)), self._exit[-1]],
            axis=1,
            num_outputs=ngrams,
        )
        for term, known, out in zip(later[:-1], self._entry[2:], self._exit[1:-1], strict=True):
            g.op("Add", term, known, out=out)
        if self._moduli:
            g.op("Mod", g.op("Add", own, self._entry[1]), self._moduli, out=self._exit[0])
        else:
            g.op("Add", own, self._entry[1], out=self._exit[0])

    def end(self, steps: str) -> None:
        """Make `next_context` of `tokens` (time, batch), for so many `steps` of each row, int64 (batch,)."""
        g = self._main
        seen = g.op("Concat", self._seen, g.op("Transpose", "tokens", perm=[1, 0]), axis=1)
        first = g.op("Unsqueeze", steps, g.constant([1]))
        at = g.op("Add", first, g.constant(list(range(self._layout.ngrams - 1))))
        g.op("GatherElements", seen, at, axis=1, out="next_context")
