"""The bodies of requests: read whole, within limits of size and time, before an endpoint sees them."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.types import Message, Receive

from rill.gateway.errors import ApiError

TOGETHER = 16  # of the largest bodies may be in memory, while they are read
_CLOSE = {"connection": "close"}  # the rest of a body may follow
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
        held, chunks = 0, []
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    chunks.append(chunk := message.get("body", b""))
                    held += len(chunk)
                    self._held += len(chunk)
                    is_last = not message.get("more_body")
                    if is_last or held > self._largest or self._held > TOGETHER * self._largest:
                        break
        except TimeoutError:
            late = f"the request's body did not arrive within {self._seconds:g} s"
            raise ApiError(408, late, headers=_CLOSE) from None
        finally:
            self._held -= held
        if held > self._largest:
            if not is_last:
                await _linger(receive)
            raise self._too_large()
        if not is_last:
            raise ApiError(
                503, "too many large requests at once: try again later", headers={**_CLOSE, "retry-after": "1"}
            )
        return b"".join(chunks)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request's body has more than {self._largest} bytes (--max-body)", headers=_CLOSE)


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
