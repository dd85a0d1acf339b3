"""The bodies of requests: read whole, within limits of size and time, before an endpoint sees them."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Message, Receive

from rill.gateway.errors import ApiError

TOGETHER = 16  # of the largest bodies may be in memory, while they are read
LINGER_SECONDS = 1.0  # for which a body that is refused is read: a client that still sends sees no answer


class Bodies:
    """Reads bodies of at most `largest` bytes, each within `seconds`."""

    def __init__(self, largest: int, seconds: float) -> None:
        self._largest, self._seconds = largest, seconds
        self._held = 0  # bytes of all bodies that are being read

    async def read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """Return a body. Raises ApiError, and ClientLeftError."""
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() else 0
        if size > self._largest:
            if b"expect" not in headers:
                await _linger(receive)
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._held += len(chunk)
                    chunks.append(chunk)
                    if size > self._largest:
                        await _linger(receive)
                        raise self._too_large()
                    if self._held > TOGETHER * self._largest:
                        raise ApiError(503, "too many large requests at once: try again later", headers=_LATER)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            message_text = f"the request's body did not arrive within {self._seconds:g} s"
            raise ApiError(408, message_text, headers={"connection": "close"}) from None
        finally:
            self._held -= size

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request's body has more than {self._largest} bytes (--max-body)", headers={"connection": "close"}
        )


_LATER = {"retry-after": "1", "connection": "close"}


class ClientLeftError(Exception):
    """The client has closed the connection."""


async def _linger(receive: Receive) -> None:
    """Read on for a moment, and forget it."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives a body that was read, and then what follows."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again
