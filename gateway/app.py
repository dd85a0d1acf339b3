"""The application: which endpoint answers which path."""

from starlette.applications import Starlette
from starlette.routing import Route

from rill.client.errors import ServerError
from rill.gateway.api.completions import completions
from rill.gateway.api.health import health
from rill.gateway.api.models import models
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError, answer_with_error
from rill.gateway.servers import Servers


def make_app(servers: Servers, drain: Drain) -> Starlette:
    """Return the application; endpoints find `servers` and `drain` in its state."""
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        exception_handlers={ApiError: answer_with_error, ServerError: answer_with_error},
    )
    app.state.servers, app.state.drain = servers, drain
    return app
