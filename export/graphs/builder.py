"""A small builder for ONNX graphs: operators are called like functions, and equal graphs give equal bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Format(NamedTuple):
    """The version of the operators, and of the file format that came with it."""

    opset: int
    ir_version: int


# The oldest opset with all operators of the portable graph in their present form; run in ONNX Runtime 1.16.
PORTABLE = Format(opset=14, ir_version=8)
SERVING = Format(opset=21, ir_version=10)  # likewise of the serving graphs; needs ONNX Runtime >= 1.18

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators

BOOL = TensorProto.BOOL
FLOAT = TensorProto.FLOAT
INT8 = TensorProto.INT8
INT64 = TensorProto.INT64

Shape = Sequence[int | str]


def tensor(name: str, dtype: int, shape: Shape) -> onnx.ValueInfoProto:
    """A typed graph input or output; a string in `shape` is a dynamic axis."""
    return helper.make_tensor_value_info(name, dtype, list(shape))


class Graph:
    """The nodes and constants of a graph under construction.

    A value is represented by its name (str). `Graph("step", within=outer)` is the body of a loop, or a branch, in
    `outer`; it may use the values of `outer`.
    """

    def __init__(self, name: str, within: "Graph | None" = None) -> None:
        self.name = name
        # ONNX requires names that are unique across a graph and its bodies.
        self._prefix: str = f"{within._prefix}{name}." if within else ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray[Any, Any] | list[int] | int | float, name: str = "") -> str:
        """Add a constant; Python numbers become int64 or float32."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"{self._prefix}{name or f'constant_{len(self._constants)}'}"
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add an operator with one output, named `out` or after the operator."""
        return self.ops(kind, *inputs, out=[out or f"{self._prefix}{kind}_{len(self._nodes)}"], **attributes)[0]

    def ops(self, kind: str, *inputs: str, out: Sequence[str] | int, **attributes: Any) -> list[str]:
        """Add an operator with several outputs; `out` is their names or their number."""
        if isinstance(out, int):
            out = [f"{self._prefix}{kind}_{len(self._nodes)}_{index}" for index in range(out)]
        self._nodes.append(
            helper.make_node(kind, inputs, out, name=f"{self._prefix}{kind}#{len(self._nodes)}", **attributes)
        )
        return list(out)

    def finish(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """The finished graph with its inputs and outputs."""
        return helper.make_graph(self._nodes, self.name, inputs, outputs, self._constants)


def model_bytes(graph: onnx.GraphProto, metadata: Mapping[str, str], form: Format, microsoft: bool = False) -> bytes:
    """The checked model, serialised; `microsoft` says that it uses that domain. Raises onnx's ValidationError."""
    opsets = [helper.make_opsetid("", form.opset)]
    if microsoft:
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(graph, producer_name="rill", opset_imports=opsets, ir_version=form.ir_version)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)
