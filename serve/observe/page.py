"""The HTTP page of a server's operators: its metrics, whether it lives, and whether it takes calls."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector

from rill.addresses import checked_host, join
from rill.serve.errors import StartError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOADING, DRAINING = "loading", "draining"
REQUEST_SECONDS = 10.0  # for which a connection may be silent
METHODS = ("GET", "HEAD")

log = logging.getLogger("rill")


class Readiness:
    """Why a server takes no calls: empty once it does. Set by the event loop, read by the threads of the page."""

    def __init__(self) -> None:
        self.obstacle = LOADING


@contextmanager
def page(
    host: str, port: int | None, obstacle: Callable[[], str], collector: Collector | None = None
) -> Iterator[int | None]:
    """Serve /metrics, /health and /ready on HOST:PORT from threads of its own. Port 0: a free one; None: no page.

    Gives the port. `obstacle` returns why no calls are taken, empty if they are. The figures are those of this process
    or, if there is one, of `collector`. Raises StartError if the port is not available.
    """
    if port is None:
        yield None
        return
    registry = REGISTRY
    if collector:
        registry = CollectorRegistry()
        registry.register(collector)
    try:
        server = _server(host, port)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {join(host, port)}: {error.strerror}") from None
    server.set_app(_application(registry, obstacle))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    log.info("metrics: http://%s/metrics", join(host, server.server_port))
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(registry: CollectorRegistry, obstacle: Callable[[], str]) -> "WSGIApplication":
    metrics = make_wsgi_app(registry)

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        if environ["REQUEST_METHOD"] not in METHODS:
            allowed = ", ".join(METHODS)
            status, text, more = "405 Method Not Allowed", f"use {allowed}", [("Allow", allowed)]
        elif environ["PATH_INFO"] == "/metrics":
            answer: Iterable[bytes] = metrics({**environ, "REQUEST_METHOD": "GET"}, start_response)
            return [] if is_head else answer
        else:
            (status, text), more = _answer(environ["PATH_INFO"], obstacle()), []
        body = f"{text}\n".encode()
        start_response(
            status,
            [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more],
        )
        return [] if is_head else [body]

    return application


def _answer(path: str, obstacle: str) -> tuple[str, str]:
    """Return the status of a path, and the line of its text."""
    if path == "/health":
        return "200 OK", "alive"
    if path == "/ready":
        return ("503 Service Unavailable", f"not ready: {obstacle}") if obstacle else ("200 OK", "ready")
    return "404 Not Found", "not found: there are /metrics, /health and /ready"


class _Handler(WSGIRequestHandler):
    """Logs nothing, and waits for no client that is silent."""

    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore that a client was silent or has left; errors of an answer are answered."""


def _server(host: str, port: int) -> _Server:
    name = checked_host(host)
    # A server of HTTP listens on one address only, and every client tries this one.
    name = "127.0.0.1" if name == "localhost" else name
    family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = type("_Server", (_Server,), {"address_family": family})
    server: _Server = kind((address[0], port), _Handler)
    return server
