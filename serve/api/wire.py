"""Between bytes and messages: malformed requests become a bad request, and answers may be bytes already.

gRPC by itself answers UNKNOWN to a request that it cannot parse, and logs a traceback. Some calls are answered without
reading theirs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from rill.serve.errors import RequestError

Handler = Any  # grpc.RpcMethodHandler, which has parameters in the stubs only

_KINDS = {  # by whether the client and the server stream
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ServiceHandlers(grpc.GenericRpcHandler):
    """The methods of `service`, implemented by the methods of `servicer` with the same names.

    Handlers get a RequestError in place of a message that cannot be parsed: it is theirs to raise. (An interceptor
    could do this too, and would cost every call a twentieth of a millisecond.) They may answer with a message's bytes.
    A call for which `instead` gives a handler, by the method's name, gets that one.
    """

    def __init__(
        self, service: ServiceDescriptor, servicer: object, instead: Callable[[str], Handler | None] = lambda _: None
    ) -> None:
        self._methods = {
            f"/{service.full_name}/{method.name}": (method.name, _handler(method, getattr(servicer, method.name)))
            for method in service.methods
        }
        self._instead = instead

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call; None if the service has no such method."""
        name, handler = self._methods.get(handler_call_details.method, ("", None))
        return handler and (self._instead(name) or handler)


def _handler(method: MethodDescriptor, behavior: Callable[..., Any]) -> Handler:
    kind: Any = _KINDS[method.client_streaming, method.server_streaming]
    parse = partial(_parse, GetMessageClass(method.input_type).FromString)
    return kind(behavior, request_deserializer=parse, response_serializer=_serialize)


def _parse(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        return RequestError("", "malformed request: not a valid protobuf message for this method")


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
