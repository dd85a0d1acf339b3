"""Between bytes and messages: a malformed request becomes an error of its own, and a response may be bytes already.

By itself, gRPC answers UNKNOWN to a request that it cannot parse, and logs a traceback. Some calls are answered without
reading their request.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from rill.request_ids import REQUEST_ID, request_id
from rill.serve.errors import RequestError

Handler = Any  # grpc.RpcMethodHandler, which has parameters in the stubs only

_KINDS = {  # by whether the client and the server stream
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ServiceHandlers(grpc.GenericRpcHandler):
    """The methods of `service`, implemented by the methods of `servicer` with the same names.

    Instead of a message that cannot be parsed, a handler gets a RequestError, which it has to raise. (An interceptor
    could do that as well, but would cost every call 0.05 ms.) A handler may return the bytes of a message. A call for
    which `instead` returns a handler, by the method's name, gets that handler.
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
        """Return the handler of a call; None if the service has no such method."""
        name, handler = self._methods.get(handler_call_details.method, ("", None))
        return handler and (self._instead(name) or handler)


class UnknownMethods(grpc.GenericRpcHandler):
    """Answers every call, and so has to be the last handler: UNIMPLEMENTED with a request id, unlike a proxy's own."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """Return a handler that reads no request."""
        method = handler_call_details.method

        async def refuse(_: Any, context: Any) -> None:
            own_id = request_id(context.invocation_metadata() or ())
            message = f"this server has no method {method}"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, message, ((REQUEST_ID, own_id),))

        handler: Handler = grpc.stream_stream_rpc_method_handler(refuse)
        return handler


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
