"""The connections of the gateway: how many, and how long each may take over what.

uvicorn parses HTTP and WebSocket. It has no limit on the time that the head of a request takes, or that a reader takes
nothing; and where it has too many connections, it refuses new ones, though others may be idle.
"""

import asyncio
import logging
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

if sys.platform != "win32":
    import resource

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from rill.gateway.config import LONGEST_HEAD, GatewayConfig
from rill.gateway.errors import ApiError
from rill.gateway.metrics import CONNECTIONS

OTHER_FILES = 128  # beside connections
PING_SECONDS = 20.0  # of a WebSocket: between pings, and until the answer


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell whether it is not a request that was ended because the gateway stops."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


log = logging.getLogger("rill")
_uvicorn_log = logging.getLogger("uvicorn.error")
_uvicorn_log.setLevel(logging.ERROR)  # its warnings are about what strangers send
_uvicorn_log.addFilter(_is_worth_logging)


def allow_files(count: int) -> int:
    """Let the process have `count` open files, or as many as the system allows; return how many it may have."""
    if sys.platform == "win32":
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return count
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < count:
        log.warning("the system allows %d open files: fewer connections than --max-connections", wanted)
    return wanted


class Connections:
    """All connections, which an application answers."""

    def __init__(self, app: Any, config: GatewayConfig) -> None:
        self.read_seconds, self.stall_seconds = config.read_seconds, config.stall_seconds
        self._limit = min(config.max_connections, allow_files(config.max_connections + OTHER_FILES) - OTHER_FILES)
        self._state = ServerState()
        self._all_lost = asyncio.Event()
        self._idle: dict[HttpConnection, None] = {}  # the one that has been idle the longest is the first
        self._config = uvicorn.Config(
            app,
            http=HttpConnection,
            ws=partial(WebSocketConnection, connections=self),  # type: ignore[arg-type]
            ws_max_size=config.max_body,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            ws_per_message_deflate=False,  # a small frame must not become a large one
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=config.idle_seconds,  # type: ignore[arg-type]  # it may be a float
            h11_max_incomplete_event_size=LONGEST_HEAD,
        )
        self._config.load()
        CONNECTIONS.set_function(lambda: len(self._state.connections))

    def accept(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return HttpConnection(self, self._config, self._state)

    @property
    def unfinished(self) -> str:
        """How many requests are running, in words."""
        count = len(self._state.tasks)
        return f"{count} request{'s' * (count != 1)} running"

    def make_room(self) -> bool:
        """Close an idle connection if there are too many; tell whether there is room for the newest."""
        if len(self._state.connections) <= self._limit:
            return True
        if not self._idle:
            return False
        oldest = next(iter(self._idle))
        del self._idle[oldest]
        oldest.transport.close()
        return True

    def set_idle(self, connection: "HttpConnection", is_idle: bool) -> None:
        """Note whether a connection waits for a request."""
        if is_idle:
            self._idle.setdefault(connection)
        else:
            self._idle.pop(connection, None)

    def on_lost(self) -> None:
        """Note that a connection has ended."""
        if not self._state.connections:
            self._all_lost.set()

    async def finish(self, seconds: float) -> None:
        """Return when no request is running, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._state.tasks and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(self._state.tasks), timeout=left)

    async def close(self, seconds: float) -> None:
        """End the requests that are running, and close all connections when their answers are sent."""
        for task in self._state.tasks:
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=seconds)
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.connections:
            self._all_lost.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_lost.wait(), seconds)
        for connection in list(self._state.connections):
            connection.transport.abort()


class _Stalls:
    """Closes a connection whose reader takes nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        """The connection takes no more bytes."""
        self._timer = self._timer or asyncio.get_running_loop().call_later(self._seconds, transport.abort)

    def end(self) -> None:
        """It takes bytes again, or has ended."""
        if self._timer:
            self._timer.cancel()
        self._timer = None


class HttpConnection(H11Protocol):
    """A connection that speaks HTTP."""

    def __init__(self, connections: Connections, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self._connections, self._stalls = connections, _Stalls(connections.stall_seconds)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, if there is room."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if not self._connections.make_room():
            self._refuse(503, "too many connections: try again later", {"retry-after": "1"})
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all that waits."""
        super().connection_lost(exc)
        self._forget()
        self._connections.on_lost()

    def data_received(self, data: bytes) -> None:
        """Handle what has arrived."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch(is_new=True)

    def pause_writing(self) -> None:
        """Note that the reader is slow."""
        super().pause_writing()
        self._stalls.begin(self.transport)

    def resume_writing(self) -> None:
        """Note that it reads."""
        super().resume_writing()
        self._stalls.end()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Leave the connection to another protocol."""
        self._forget()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has too large a head."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            self._refuse(431, f"the request line and the headers have more than {LONGEST_HEAD} bytes")
        else:
            self._refuse(400, f"this is not a valid HTTP/1.1 request: {error or msg}")

    def _watch(self, is_new: bool = False) -> None:
        """Limit the time of a head; between two requests, uvicorn limits it until the first byte of the next one."""
        is_idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        is_idle = is_idle and not self.transport.is_closing()
        self._connections.set_idle(self, is_idle)
        if is_idle and not is_new:
            loop, seconds = asyncio.get_running_loop(), self._connections.read_seconds
            self._head_timer = self._head_timer or loop.call_later(seconds, self._on_late_head)
        else:
            self._end_head_timer()

    def _on_late_head(self) -> None:
        self._refuse(408, f"no complete request arrived within {self._connections.read_seconds:g} s")

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer without the application, if the connection is in a state that allows it, and close it."""
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            error = ApiError(status, message, headers=headers)
            body = error.json
            fields = {"content-type": "application/json", "content-length": len(body), **error.headers}
            lines = [f"HTTP/1.1 {status} {h11_reason(status)}", *(f"{key}: {value}" for key, value in fields.items())]
            self.transport.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
        self._forget()
        self.transport.close()

    def _forget(self) -> None:
        self._connections.set_idle(self, False)
        self._end_head_timer()
        self._stalls.end()

    def _end_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = None


def h11_reason(status: int) -> str:
    """Return the words of a status."""
    return {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}.get(
        status, "Bad Request"
    )


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A connection that speaks WebSocket."""

    def __init__(self, *arguments: Any, connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connections, self._stalls = connections, _Stalls(connections.stall_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """End all that waits."""
        super().connection_lost(exc)
        self._stalls.end()
        self._connections.on_lost()

    def pause_writing(self) -> None:
        """Note that the reader is slow."""
        super().pause_writing()
        self._stalls.begin(self.transport)

    def resume_writing(self) -> None:
        """Note that it reads."""
        super().resume_writing()
        self._stalls.end()
