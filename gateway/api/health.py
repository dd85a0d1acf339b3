"""`GET /health`: the gateway lives."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse


async def health(request: Request) -> PlainTextResponse:
    """Return 200."""
    return PlainTextResponse("ok\n")
