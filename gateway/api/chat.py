"""OpenAI's endpoints for chats, which clients try first: what to use instead."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rill.gateway.errors import ApiError

_FIELDS = {"/v1/chat/completions": "messages", "/v1/responses": "input"}


def chat_routes() -> list[Route]:
    """Return the routes."""
    return [Route(path, _refuse, methods=["POST"]) for path in _FIELDS]


async def _refuse(request: Request) -> Response:
    """Raise ApiError."""
    field = _FIELDS[request.url.path]
    message = f"{field} is not supported: the models continue a text, and know no chat; "
    raise ApiError(400, message + "send the text as prompt to /v1/completions", field)
