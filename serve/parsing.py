"""Bytes that are no message of rill.proto are a bad request. gRPC by itself answers UNKNOWN, and logs its own fault."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serve.errors import RequestError


class Parsing(grpc.aio.ServerInterceptor):
    """Gives handlers of `service` a RequestError in place of a message that cannot be read: it is theirs to raise."""

    def __init__(self, service: str) -> None:
        self._methods = f"/{service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of a call, if there is one."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._methods):
            return handler
        return handler._replace(request_deserializer=partial(_parse, handler.request_deserializer))


def _parse(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        return RequestError("", "the request's bytes are no message of rill.proto, or none of this method")
