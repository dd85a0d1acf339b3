"""Between bytes and messages: bytes that are no message of rill.proto are a bad request, and answers may be bytes.

gRPC by itself answers UNKNOWN to the former, and logs its own fault. Some calls are answered without a look at theirs.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from serve.errors import RequestError

Handler = Any  # grpc.RpcMethodHandler, which has parameters in the stubs only


class Parsing:
    """Stands for `server` where a service is added to it, as generated code does.

    Its handlers get a RequestError in place of a message that cannot be read: it is theirs to raise. (An interceptor
    could do this too, and would cost every call a twentieth of a millisecond.) They may answer with a message's bytes.
    A call for which `instead` gives a handler, by the method's name, gets that one.
    """

    def __init__(self, server: grpc.aio.Server, instead: Callable[[str], Handler | None] = lambda method: None) -> None:
        self._server, self._instead = server, instead

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """They come as methods, too."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Handler]) -> None:
        """Add the methods of a service."""
        careful = {
            name: handler._replace(
                request_deserializer=partial(_parse, handler.request_deserializer), response_serializer=_serialize
            )
            for name, handler in methods.items()
        }
        self._server.add_generic_rpc_handlers((_Methods(service, careful, self._instead),))


class _Methods(grpc.GenericRpcHandler):
    """The methods of a service, of which gRPC asks for the one of each call."""

    def __init__(self, service: str, methods: Mapping[str, Handler], instead: Callable[[str], Handler | None]) -> None:
        self._methods = {f"/{service}/{name}": (name, handler) for name, handler in methods.items()}
        self._instead = instead

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call; None if the service has no such method."""
        name, handler = self._methods.get(handler_call_details.method, ("", None))
        return handler and (self._instead(name) or handler)


def _parse(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        return RequestError("", "the request's bytes are no message of rill.proto, or none of this method")


def _serialize(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
