"""An answer of server-sent events, each sent as soon as there is one."""

from collections.abc import AsyncGenerator
from typing import Protocol

from starlette.types import Receive, Scope, Send

from rill.gateway.api.disconnects import Disconnect
from rill.gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"  # after everything, as OpenAI's clients expect

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


class EventSource(Protocol):
    """What makes events, as bytes, and has to be closed."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """Yield one event or several."""

    async def aclose(self) -> None:
        """End the work."""


class EventStream:
    """Sends the events of `source` as fast as the client reads, until they end or it leaves."""

    def __init__(self, source: EventSource) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        try:
            with Disconnect(receive) as client:
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                async for event in self._source.events():
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                client.close()
                await send({"type": "http.response.body"})
        finally:
            await self._source.aclose()


def error_event(error: ApiError) -> bytes:
    """Return the event of an error, after which there is no other."""
    return b"event: error\ndata: " + error.json + b"\n\n"
