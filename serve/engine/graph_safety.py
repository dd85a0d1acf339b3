"""What a graph must not have: data outside of itself.

An ONNX model may name files to take its weights from. ONNX Runtime would read them from the current folder, and its
earlier versions from anywhere; the model could put what it finds there into its texts. Our graphs name none.

The server does without the onnx package: of its messages, this declares the fields through which one can get to a
tensor (onnx.proto, by number), and protobuf skips the rest.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClassesForFiles

from rill.serve.errors import StartError

_NUMBER = FieldDescriptorProto.TYPE_INT32
_FIELDS: dict[str, list[tuple[str, int, str | None]]] = {  # by message: name, number, and the message it holds
    "Model": [("graph", 7, "Graph"), ("training", 20, "Training"), ("functions", 25, "Function")],
    "Training": [("initialization", 1, "Graph"), ("algorithm", 2, "Graph")],
    "Function": [("nodes", 7, "Node"), ("attributes", 11, "Attribute")],
    "Graph": [("nodes", 1, "Node"), ("initializers", 5, "Tensor"), ("sparse_initializers", 15, "Sparse")],
    "Node": [("attributes", 5, "Attribute")],
    "Attribute": [
        *[("tensor", 5, "Tensor"), ("graph", 6, "Graph"), ("tensors", 10, "Tensor"), ("graphs", 11, "Graph")],
        *[("sparse", 22, "Sparse"), ("sparses", 23, "Sparse")],
    ],
    "Sparse": [("values", 1, "Tensor"), ("indices", 2, "Tensor")],
    "Tensor": [("external_data", 13, "Entry"), ("data_location", 14, None)],
    "Entry": [],
}


def require_self_contained(graph: bytes, name: str) -> None:
    """Raise StartError unless a serialised model of bundle `name` is one, and has all its data in itself."""
    try:
        tensors = list(_tensors(_CLASSES["rill.graphs.Model"].FromString(graph)))
    except DecodeError:
        raise StartError(f"bundle {name!r}: a graph is no ONNX model; export it again") from None
    if any(tensor.external_data or any(tensor.data_location) for tensor in tensors):
        raise StartError(
            f"bundle {name!r}: a graph takes data from other files, which is refused: a bundle's graphs are whole"
        )


def _tensors(message: Message) -> Iterator[Any]:
    """All that are in a message, however deep."""
    if message.DESCRIPTOR.name == "Tensor":
        yield message
        return
    for _, parts in message.ListFields():
        for part in parts:
            yield from _tensors(part)


def _message_classes() -> dict[str, Any]:
    """By full name. Each field is declared as repeated: protobuf then keeps all that is there, not only the last."""
    file = FileDescriptorProto(name="rill_graphs.proto", package="rill.graphs", syntax="proto2")
    for message, fields in _FIELDS.items():
        declared = file.message_type.add(name=message)
        for name, number, held in fields:
            field = declared.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_REPEATED)
            field.type = FieldDescriptorProto.TYPE_MESSAGE if held else _NUMBER
            if held:
                field.type_name = f".rill.graphs.{held}"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClassesForFiles([file.name], pool)


# All of them, though one would find the others: protobuf keeps a class only while somebody has it. If the garbage
# collector takes one in the moment in which another thread finds it, its next use ends the process (SIGSEGV).
_CLASSES = _message_classes()
