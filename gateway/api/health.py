"""What monitoring asks: whether the gateway lives, whether it can answer requests, its version and its metrics."""

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rill.gateway.metrics import REGISTRY
from rill.programs import version

VERSION = version()


async def health(request: Request) -> PlainTextResponse:
    """`GET /health`: return 200, as long as the gateway runs."""
    return PlainTextResponse("ok\n")


async def ready(request: Request) -> PlainTextResponse:
    """`GET /ready`: return 200 if a server takes calls and the gateway is not shutting down, else 503 and why."""
    obstacle = "draining" if request.app.state.drain.has_begun else await request.app.state.readiness.obstacle()
    return PlainTextResponse(f"{obstacle or 'ready'}\n", 503 if obstacle else 200)


async def show_version(request: Request) -> JSONResponse:
    """`GET /version`: return the version of Rill."""
    return JSONResponse({"version": VERSION})


async def metrics(request: Request) -> Response:
    """`GET /metrics`: return the gateway's metrics in the format of Prometheus."""
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"content-type": kind})
