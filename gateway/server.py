"""The life of a gateway: listen, serve until a signal, drain."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from rill.addresses import checked_host, join
from rill.client.aio import AsyncClient
from rill.gateway.app import make_app
from rill.gateway.config import GatewayConfig
from rill.gateway.drain import Drain
from rill.gateway.servers import Servers


async def serve(config: GatewayConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    try:
        listener = _listen(config)
    except (OSError, ValueError) as error:
        print(f"error: cannot listen on {join(config.host, config.port)}: {error}", file=sys.stderr)
        return 2
    drain = Drain()
    client = AsyncClient(config.target, begin_seconds=config.retry_seconds, security=config.security)
    server = uvicorn.Server(
        uvicorn.Config(make_app(Servers(client), drain), lifespan="off", log_config=None, access_log=False)
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        drain.begin()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if config.end_with_stdin:
        threading.Thread(target=_call_at_end_of_stdin, args=(loop, stop), daemon=True).start()
    async with client:
        print(f"rill: http on http://{join(config.host, listener.getsockname()[1])}", flush=True)
        await server._serve([listener])  # `serve` would take the signals
    return 0


def _listen(config: GatewayConfig) -> socket.socket:
    host = checked_host(config.host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, config.port), family=family, backlog=2048)
    listener.setblocking(False)
    return listener


def _call_at_end_of_stdin(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(OSError):  # it cannot be read
        while os.read(0, 1024):
            pass
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(call)
