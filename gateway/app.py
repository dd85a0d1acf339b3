"""The application: which endpoint answers which path."""

from difflib import get_close_matches

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from rill.client.errors import ServerError
from rill.gateway.api.chat import chat_routes
from rill.gateway.api.completions import completions
from rill.gateway.api.health import health, metrics, ready, show_version
from rill.gateway.api.interact import interact, upgrade_required
from rill.gateway.api.load import load
from rill.gateway.api.models import model, models
from rill.gateway.api.page import page_routes
from rill.gateway.api.score import score
from rill.gateway.api.tokens import detokenize, tokenize, tokenizer_info
from rill.gateway.config import GatewayConfig
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError, answer_with_error
from rill.gateway.gate import Gate
from rill.gateway.readiness import Readiness
from rill.gateway.servers import Servers


def make_app(config: GatewayConfig, servers: Servers, readiness: Readiness, drain: Drain) -> Gate:
    """Return the application; endpoints find `servers` and `drain` in its state."""
    routes: list[BaseRoute] = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/version", show_version),
        Route("/v1/load", load),
        Route("/v1/models", models),
        Route("/v1/models/{id}", model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/interact", upgrade_required),
        WebSocketRoute("/v1/interact", interact),
        Route("/v1/score", score, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", tokenizer_info),
        *chat_routes(),
        *page_routes(),
    ]
    if config.metrics:
        routes.append(Route("/metrics", metrics))
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: answer_with_error,
            ServerError: answer_with_error,
            HTTPException: _answer_no_route,
            Exception: _answer_bug,
        },
    )
    app.router.redirect_slashes = False  # behind a proxy, the address to go to would be wrong
    app.state.servers, app.state.readiness, app.state.drain = servers, readiness, drain
    return Gate(app, {path for route in routes if "{" not in (path := getattr(route, "path", ""))}, config, drain)


async def _answer_no_route(request: Request, error: Exception) -> Response:
    """Answer what no endpoint does."""
    assert isinstance(error, HTTPException)
    headers, path = dict(error.headers or {}), request.url.path
    if error.status_code == 405:
        message = f"{path} does not take {request.method}: use {headers.get('Allow', 'another method')}"
    elif error.status_code == 404:
        paths = [known for route in request.app.routes if (known := getattr(route, "path", ""))]
        close = get_close_matches(path, paths, 1, 0.8)
        message = f"there is no {path[:100]}{f'; did you mean {close[0]}?' if close else ''}"
    else:
        message = error.detail
    return await answer_with_error(request, ApiError(error.status_code, message, headers=headers))


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Answer a request whose endpoint failed; uvicorn logs why."""
    message = f"the gateway failed; its log has more under the request id {request.state.request_id}"
    return await answer_with_error(request, ApiError(500, message))
