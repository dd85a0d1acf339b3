"""A check that a graph has no data outside itself.

An ONNX model may name files that hold its weights. ONNX Runtime reads them from the current folder, and earlier
versions from anywhere, so a model could reveal the content of files in its texts. Rill's graphs name no files.

The server does not need the onnx package for this: it declares only those fields of onnx.proto, by number, that lead to
a tensor, and protobuf skips the rest.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClassesForFiles

from rill.serve.errors import StartError

_NUMBER = FieldDescriptorProto.TYPE_INT32
_FIELDS: dict[str, list[tuple[str, int, str | None]]] = {  # by message: name, number, and type
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
    """Raise StartError unless `graph`, of bundle `name`, is a serialised ONNX model that contains all its data."""
    try:
        tensors = list(_tensors(_CLASSES["rill.graphs.Model"].FromString(graph)))
    except DecodeError:
        raise StartError(f"bundle {name!r}: a graph is not an ONNX model; export it again") from None
    if any(tensor.external_data or any(tensor.data_location) for tensor in tensors):
        raise StartError(f"bundle {name!r}: a graph takes data from other files, which is refused; export it again")


def _tensors(message: Message) -> Iterator[Any]:
    """All tensors in a message, however deep."""
    if message.DESCRIPTOR.name == "Tensor":
        yield message
        return
    for _, parts in message.ListFields():
        for part in parts:
            yield from _tensors(part)


def _message_classes() -> dict[str, Any]:
    """The declared classes by full name. All fields are repeated, so that protobuf keeps every value of each."""
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


# Keep all of them, though one leads to the others: protobuf keeps a class only while it is referenced. If the garbage
# collector takes one at the moment when another thread finds it, its next use ends the process (SIGSEGV).
_CLASSES = _message_classes()
