"""`GET /v1/load`: what the servers serve and how busy one of them is, for the page."""

from starlette.requests import Request
from starlette.responses import JSONResponse

_MODEL = ("name", "model_id", "cell", "layers", "hidden", "vocabulary_size", "precision", "streamable")
_LOAD = ("streams_running", "streams_waiting", "streams_parked", "max_streams", "draining")


async def load(request: Request) -> JSONResponse:
    """Return the fields of ListModels, without vocabularies. Raises ApiError and ServerError."""
    client = request.app.state.servers.for_request(request)
    served = await client.models(request_id=request.state.request_id)
    models = [
        {**{name: getattr(model, name) for name in _MODEL}, "end_symbols": list(model.end_symbols)}
        for model in served.models
    ]
    return JSONResponse({"models": models, **{name: getattr(served, name) for name in _LOAD}})
