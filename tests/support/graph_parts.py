"""What is in an ONNX graph: bodies of loops and branches too."""

from collections.abc import Iterator

import onnx


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and all bodies and branches in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_graph(attribute.g)


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All nodes, in order."""
    return [node for graph in every_graph(model.graph) for node in graph.node]


def initializers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """All constants, in order."""
    return [tensor for graph in every_graph(model.graph) for tensor in graph.initializer]


def body_of(model: onnx.ModelProto, kind: str, attribute: str) -> onnx.GraphProto:
    """The body `attribute` of the first node of a kind in the outer graph."""
    node = next(node for node in model.graph.node if node.op_type == kind)
    return next(each.g for each in node.attribute if each.name == attribute)
