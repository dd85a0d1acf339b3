"""The life of a gateway: listen, serve until a signal, drain."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from rill.addresses import is_loopback, join
from rill.client.aio import AsyncClient
from rill.client.connection import Options
from rill.client.security import Security
from rill.gateway.app import make_app
from rill.gateway.config import GatewayConfig, StartError
from rill.gateway.connections import Connections
from rill.gateway.drain import Drain
from rill.gateway.listen import BACKLOG, listeners
from rill.gateway.readiness import Readiness
from rill.gateway.servers import Servers
from rill.gateway.tls import Certificates
from rill.signals import delivered
from rill.streams import discard_output

HANDSHAKE_SECONDS = 10.0
STOP_SECONDS = 1.0  # for the last bytes of answers
# Otherwise gRPC reads ahead up to 4 MB of each stream whose reader is slow, and a server computes them.
CHANNEL_OPTIONS: Options = [("grpc.http2.bdp_probe", 0)]

log = logging.getLogger("rill")


async def serve(config: GatewayConfig, security: Security) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the gateway at once. Raises StartError."""
    certificates = Certificates(config) if config.http_tls_cert else None
    stop: asyncio.Queue[None] = asyncio.Queue()
    drain = Drain()
    on_stop = partial(stop.put_nowait, None)
    client = AsyncClient(
        config.target, begin_seconds=config.retry_seconds, security=security, channel_options=CHANNEL_OPTIONS
    )
    readiness = Readiness(config.target, security)
    with (
        delivered({signal.SIGTERM: on_stop, signal.SIGINT: on_stop, signal.SIGHUP: lambda: None}),
        _sockets(config) as sockets,
    ):
        async with client, readiness:
            connections = Connections(make_app(config, Servers(client, config.spread), readiness, drain), config)
            async with _accepting(connections, sockets, certificates):
                _announce(config, sockets[0].getsockname()[1])
                if config.end_with_stdin:
                    _call_at_end_of_stdin(on_stop)
                await stop.get()
                log.info("draining: %s", connections.unfinished)
                drain.begin()
                await _first(connections.finish(config.drain_seconds), stop.get())
    log.info("stopped")


@contextmanager
def _sockets(config: GatewayConfig) -> Iterator[list[socket.socket]]:
    sockets = listeners(config)
    try:
        yield sockets
    finally:
        for listener in sockets:
            listener.close()


@asynccontextmanager
async def _accepting(
    connections: Connections, sockets: list[socket.socket], certificates: Certificates | None
) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    context = certificates.context() if certificates else None
    handshake = min(HANDSHAKE_SECONDS, connections.read_seconds) if context else None
    servers = [
        await loop.create_server(
            connections.accept, sock=one, ssl=context, ssl_handshake_timeout=handshake, backlog=BACKLOG
        )
        for one in sockets
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()
        await connections.close(STOP_SECONDS)


def _announce(config: GatewayConfig, port: int) -> None:
    scheme = "https" if config.http_tls_cert else "http"
    is_private = is_loopback(config.host) or config.http_tls_cert
    if not (is_private or config.end_with_stdin):  # the program that starts it has said so
        log.warning("listening on %s without encryption: texts and bearer tokens can be read in transit", config.host)
    try:
        print(f"rill: http on {scheme}://{join(config.host, port)}", flush=True)
    except OSError as error:  # whoever waits for it would wait forever
        discard_output()
        raise StartError(f"cannot write to stdout: {error.strerror}") from None


def _call_at_end_of_stdin(on_end: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def wait() -> None:
        try:
            while os.read(sys.stdin.fileno(), 1024):
                pass
        except OSError:
            pass
        loop.call_soon_threadsafe(on_end)

    threading.Thread(target=wait, name="rill-stdin", daemon=True).start()


async def _first(*awaited: object) -> None:
    """Return when one of these coroutines has; the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in awaited]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
