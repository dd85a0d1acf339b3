"""The arithmetic of the serving graph: float32 or int8.

A cell is written once (`rill.export.graphs.steps`) in terms of three operations: rows of a constant table, operands,
and products of an operand with a constant matrix.

int8 relies on a bound known in advance: a hidden state lies in (-1, 1), so its scale is 1/127 for any text, and a row
never depends on the other rows of its batch, as it would with ranges taken from the batch. A sum of n states, the input
of residual layers, lies in (-n, n). States are uint8 around 128. Weights are symmetric, with one scale for each output.
They have 7 bits, because x86 processors before VNNI add pairs of products in 16 bits: 2 * 255 * 64 just fits, and the
sums are the same integers on all processors. Tables are not multiplied and have 8 bits.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rill.export.graphs.builder import FLOAT, MICROSOFT, Graph
from rill.export.graphs.weights import Matrix

STATE_STEPS = 127
ZERO_POINT = 128
WEIGHT_STEPS = 64
TABLE_STEPS = 127


@dataclass(frozen=True)
class Quantized:
    """A matrix as integers, with a scale for each index of its axis `outputs`: matrix ≈ scale * integers."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]  # (outputs,)
    outputs: int

    @classmethod
    def of(cls, matrix: Matrix, steps: int, outputs: int = 1) -> "Quantized":
        """Round `matrix` to the nearest of `steps` integers on either side of 0."""
        across = tuple(axis for axis in range(matrix.ndim) if axis != outputs)
        largest = np.abs(matrix).max(axis=across, keepdims=True)
        scale = np.where(largest / steps > np.finfo(np.float32).tiny, largest / steps, 1).astype(np.float32)
        return cls(np.clip(np.rint(matrix / scale), -steps, steps).astype(np.int8), scale.ravel(), outputs)

    def matrix(self) -> NDArray[np.float32]:
        """The matrix that DequantizeLinear computes from it."""
        shape = [-1 if axis == self.outputs else 1 for axis in range(self.integers.ndim)]
        return self.integers.astype(np.float32) * self.scale.reshape(shape)


def rounded(name: str, weight: Matrix) -> NDArray[np.float32]:
    """A parameter, by PyTorch's name and shape, with the values of the portable int8 graph."""
    if weight.ndim == 1:  # a bias
        return weight.astype(np.float32)
    steps = TABLE_STEPS if is_table(name) else WEIGHT_STEPS
    return Quantized.of(weight, steps, outputs=0).matrix()


def is_table(name: str) -> bool:
    """Whether a matrix, by PyTorch's name, is a table of rows that are read, not multiplied."""
    return name == "embedding.weight" or name.startswith("ngrams.")


class Operand(NamedTuple):
    """The left factor of a product: (batch, features), with values in (-bound, bound)."""

    value: str
    bound: float


class Arithmetic(Protocol):
    """The operations of cells in one graph. Values are float32 (batch, columns) unless they are operands."""

    @property
    def g(self) -> Graph:
        """The graph."""

    def rows(self, table: Matrix, ids: str) -> str:
        """The rows `ids` int64 (batch,) of `table` (rows, columns)."""

    def operand(self, x: str, bound: float) -> Operand:
        """x (batch, features), which lies in (-bound, bound), as an operand of `product`."""

    def product(self, operand: Operand, matrix: Matrix, addend: str | Matrix) -> str:
        """operand @ matrix + addend, matrix (features, columns), addend a value or a constant (columns,)."""


@dataclass(frozen=True)
class Float:
    """float32."""

    g: Graph

    def rows(self, table: Matrix, ids: str) -> str:
        """See Arithmetic."""
        return self.g.op("Gather", self.g.constant(table.astype(np.float32)), ids)

    def operand(self, x: str, bound: float) -> Operand:
        """x itself."""
        return Operand(x, bound)

    def product(self, operand: Operand, matrix: Matrix, addend: str | Matrix) -> str:
        """One Gemm; ONNX Runtime fuses the following activation into it."""
        added = addend if isinstance(addend, str) else self.g.constant(addend.astype(np.float32))
        return self.g.op("Gemm", operand.value, self.g.constant(matrix.astype(np.float32)), added)


@dataclass(frozen=True)
class Int8:
    """uint8 states by int8 weights, summed in int32, on the CPU."""

    g: Graph

    def rows(self, table: Matrix, ids: str) -> str:
        """See Arithmetic; the table is int8."""
        g, quantized = self.g, Quantized.of(table, TABLE_STEPS)
        rows = g.op("Gather", g.constant(quantized.integers), ids)
        # Equal to DequantizeLinear, in a third of its time for scales along the last axis.
        return g.op("Mul", g.op("Cast", rows, to=FLOAT), g.constant(quantized.scale))

    def operand(self, x: str, bound: float) -> Operand:
        """x in steps of bound / 127."""
        g = self.g
        steps = g.op("QuantizeLinear", x, g.constant(bound / STATE_STEPS), g.constant(np.array(ZERO_POINT, np.uint8)))
        return Operand(steps, bound)

    def product(self, operand: Operand, matrix: Matrix, addend: str | Matrix) -> str:
        """One MatMulIntegerToFloat."""
        g, quantized = self.g, Quantized.of(matrix, WEIGHT_STEPS)
        inputs = [
            operand.value,
            g.constant(quantized.integers),
            g.constant(operand.bound / STATE_STEPS),
            g.constant(quantized.scale),
            g.constant(np.array(ZERO_POINT, np.uint8)),
            g.constant(np.zeros(len(quantized.scale), np.int8)),
        ]
        if isinstance(addend, str):
            return g.op("Add", g.op("MatMulIntegerToFloat", *inputs, domain=MICROSOFT), addend)
        bias = g.constant(addend.astype(np.float32))
        return g.op("MatMulIntegerToFloat", *inputs, bias, domain=MICROSOFT)


ARITHMETICS: dict[str, type[Float | Int8]] = {"fp32": Float, "int8": Int8}
