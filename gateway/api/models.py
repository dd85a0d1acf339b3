"""`GET /v1/models`: what the servers serve."""

from starlette.requests import Request
from starlette.responses import JSONResponse


async def models(request: Request) -> JSONResponse:
    """Return the models in the form of OpenAI's list."""
    client = request.app.state.servers.for_request(request)
    served = await client.models()
    entries = [{"id": model.name, "object": "model", "created": 0, "owned_by": "rill"} for model in served.models]
    return JSONResponse({"object": "list", "data": entries})
