"""`GET /v1/models` and `GET /v1/models/{id}`: what the servers serve, in OpenAI's form."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from rill.gateway.served_models import Listing, ServedModel
from rill.gateway.servers import Servers
from rill.vocabulary import CHARACTERS


async def models(request: Request) -> JSONResponse:
    """Return the models, the default first."""
    listing = await _listing(request)
    return JSONResponse({"object": "list", "data": list(map(_entry, listing.models.values()))})


async def model(request: Request) -> JSONResponse:
    """Return one model. Raises ApiError if it is not served."""
    return JSONResponse(_entry((await _listing(request)).find(request.path_params["id"])))


async def _listing(request: Request) -> Listing:
    servers: Servers = request.app.state.servers
    return await servers.models.fresh(servers.for_request(request))


def _entry(served: ServedModel) -> dict[str, Any]:
    info = served.info
    return {
        "id": info.name,
        "object": "model",
        "created": 0,  # a bundle does not say, and the same model must not change
        "owned_by": "rill",
        "root": info.name,
        "parent": None,
        "rill": {
            "model_id": info.model_id,
            "system_fingerprint": served.fingerprint,
            "numerics": info.numerics,
            "cell": info.cell,
            "layers": info.layers,
            "hidden": info.hidden,
            "vocabulary_size": info.vocabulary_size,
            "precision": info.precision,
            "provider": info.provider,
            "streamable": info.streamable,
            "state_bytes": info.state_bytes,
            "tokenizer": info.tokenizer or CHARACTERS,
            "start_symbol": info.start_symbol,
            "end_symbols": list(info.end_symbols),
            "ngrams": info.ngrams or 1,
        },
    }
