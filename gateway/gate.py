"""What every request passes: its id, who may ask, limits, the headers of its answer, metrics and the access log."""

import logging
import re
import time
from collections.abc import Collection, Iterable, MutableMapping
from email.utils import formatdate
from functools import cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rill.gateway.bodies import Bodies, ClientLeftError, replayed
from rill.gateway.config import LONGEST_HEAD, GatewayConfig
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError, draining_error
from rill.gateway.hosts import Hosts, Origins
from rill.gateway.metrics import FIRST_BYTE_SECONDS, RECEIVED, REQUEST_SECONDS, REQUESTS, RUNNING, SENT
from rill.request_ids import REQUEST_ID, harmless_id, new_id

PROBES = ("/health", "/ready", "/metrics", "/version")  # answered while draining; monitoring asks often: not logged
WEBSOCKETS = ("/v1/interact",)
METHODS = ("GET", "HEAD", "POST", "OPTIONS")  # of endpoints
OTHER = "other"  # the path of requests for no endpoint
CLIENT_LEFT = 499  # nginx's status for it, in the log and the metrics
PREFLIGHT_SECONDS = 600
MOST_HEADERS = 100

# The page's scripts and styles are files of its own; nothing of it is shown in another site's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]

log = logging.getLogger("rill.calls")


class Gate:
    """An application around the one that has the endpoints at `paths`.

    Endpoints find the id of a request in `request.state.request_id`, and may note what the log is to have in
    `request.state.fields`.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], config: GatewayConfig, drain: Drain) -> None:
        self._app, self._paths, self._drain = app, paths, drain
        self._hosts = Hosts(config.host, config.allowed_host)
        self._origins = Origins(config.cors, bool(config.http_tls_cert))
        self._bodies = Bodies(config.max_body, config.read_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        passage = _Passage(scope, receive, send, self._origins)
        running = _running_of(passage.path if passage.path in self._paths else OTHER)
        running.inc()
        try:
            if scope["type"] == "http" and self._is_preflight(passage):
                return await passage.answer(204, passage.preflight_headers())
            self._check(passage)
            receive_next: Receive = passage.receive
            if scope["type"] == "http" and passage.method not in ("GET", "HEAD", "OPTIONS"):
                receive_next = replayed(await self._bodies.read(scope, passage.receive), passage.receive)
            await self._app(scope, receive_next, passage.send)
        except ApiError as error:
            await passage.refuse(error)
        except ClientLeftError:
            pass
        finally:
            running.dec()
            passage.close()
        return None

    def _is_preflight(self, passage: "_Passage") -> bool:
        return (
            passage.method == "OPTIONS"
            and b"access-control-request-method" in passage.headers
            and self._origins.is_shared(passage.header(b"origin"))
            and self._hosts.is_known(passage.header(b"host"))
        )

    def _check(self, passage: "_Passage") -> None:
        """Raise ApiError if a request must not be answered."""
        _check_head(passage)
        host, origin = passage.header(b"host"), passage.header(b"origin")
        # Only a program of before HTTP/1.1, such as a proxy's probe, leaves it out, and no browser.
        if b"host" in passage.headers and not self._hosts.is_known(host):
            raise ApiError(
                421,
                f"the gateway is not reached as {_shown(host)}: use an IP address or localhost, or allow the name with "
                "--allowed-host (of rill serve: --http-allowed-host)",
                headers=_CLOSE,
            )
        is_reading = passage.scope["type"] == "http" and passage.method in ("GET", "HEAD", "OPTIONS")
        if origin and not is_reading and not self._origins.may_use(origin, host):
            raise ApiError(
                403,
                f"pages of {_shown(origin)} may not use this gateway: allow the origin with --cors (of rill serve: "
                "--http-cors)",
                headers=_CLOSE,
            )
        # Browsers of today mark what a page of another site asks for, and browsers send a form without an origin.
        if not origin and passage.header(b"sec-fetch-site") in ("cross-site", "same-site") and not is_reading:
            raise ApiError(403, "pages of other sites may not use this gateway", headers=_CLOSE)
        if passage.scope["type"] == "websocket" and passage.path not in WEBSOCKETS:
            raise ApiError(404, f"there is no WebSocket at {passage.path[:100]}: it is at {WEBSOCKETS[0]}")
        if self._drain.has_begun and passage.path not in PROBES:
            raise draining_error()
        if passage.method == "POST":
            if (coding := passage.header(b"content-encoding").lower()) not in ("", "identity"):
                message = f"the body must be sent as it is, without content-encoding {_shown(coding)}"
                raise ApiError(415, message, headers=_CLOSE)
            kind = passage.header(b"content-type").partition(";")[0].strip().lower()
            if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
                raise ApiError(
                    415,
                    f"content-type must be application/json, not {_shown(kind) if kind else 'absent'}",
                    headers=_CLOSE,
                )


_CLOSE = {"connection": "close"}  # a body that was not read may follow
_ABSOLUTE = re.compile("https?://([^/]+)", re.IGNORECASE)


def _check_head(passage: "_Passage") -> None:
    """Raise ApiError for a head that is too large, or that a proxy in front may read in another way."""
    scope = passage.scope
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size + len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_HEAD:
        raise ApiError(431, f"the request line and the headers have more than {LONGEST_HEAD} bytes", headers=_CLOSE)
    if len(scope["headers"]) > MOST_HEADERS:
        raise ApiError(431, f"the request has more than {MOST_HEADERS} headers", headers=_CLOSE)
    if scope["http_version"] not in ("1.0", "1.1"):
        raise ApiError(505, "the gateway speaks HTTP/1.1", headers=_CLOSE)
    if b"content-length" in passage.headers and b"transfer-encoding" in passage.headers:
        raise ApiError(400, "a request has content-length or transfer-encoding, not both", headers=_CLOSE)


class _Passage:
    """One request on its way: what came, what was answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, origins: Origins) -> None:
        self.scope, self._receive, self._send, self._origins = scope, receive, send, origins
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if whole := _ABSOLUTE.match(scope["path"]):  # as proxies ask; what it says of the host counts
            scope["path"] = scope["path"][whole.end() :] or "/"
            scope["raw_path"] = scope["path"].encode()
            self.headers[b"host"] = whole[1].encode()
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self._id = harmless_id(self.header(REQUEST_ID.encode())) or new_id()
        scope.setdefault("state", {}).update(request_id=self._id, fields={})
        self._began, self._status, self._sent, self._received = time.monotonic(), 0, 0, 0
        self._first_byte: float | None = None

    def header(self, name: bytes) -> str:
        """Return a header of the request, empty if it has none of that name."""
        return self.headers.get(name, b"").decode("latin-1")

    async def receive(self) -> Message:
        """Pass on what arrives, and count it."""
        message = await self._receive()
        match message["type"]:
            case "http.request":
                self._received += len(message.get("body", b""))
            case "websocket.receive":
                self._received += len(message.get("text") or message.get("bytes") or "")
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Pass on what is answered, with headers of our own, and count it."""
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start" | "websocket.accept":
                self._status = message.get("status", 101)
                message = {**message, "headers": self._with_headers(message.get("headers", ()))}
            case "http.response.body" | "websocket.send":
                if self._first_byte is None:
                    self._first_byte = time.monotonic() - self._began
                self._sent += len(message.get("body") or message.get("text") or b"")
        await self._send(message)

    async def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> None:
        """Answer without the application."""
        kind = "http.response" if self.scope["type"] == "http" else "websocket.http.response"
        length = [(b"content-length", str(len(body)).encode())] if status != 204 else []
        await self.send({"type": f"{kind}.start", "status": status, "headers": [*headers, *length]})
        await self.send({"type": f"{kind}.body", "body": body})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun."""
        if self._status:
            return
        headers = [(key.encode(), value.encode()) for key, value in error.headers.items()]
        await self.answer(error.status, [(b"content-type", b"application/json"), *headers], error.json)

    def preflight_headers(self) -> list[tuple[bytes, bytes]]:
        """Return what a browser may do for a page of another origin."""
        return [
            (b"access-control-allow-methods", ", ".join(METHODS[:3]).encode()),
            (b"access-control-allow-headers", self.headers.get(b"access-control-request-headers", b"content-type")),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
            (b"access-control-allow-private-network", b"true"),  # Chrome asks before pages reach this machine
        ]

    def close(self) -> None:
        """Count and log the request."""
        path, seconds, status = self._template, time.monotonic() - self._began, self._status or CLIENT_LEFT
        method = self.method if self.method in METHODS else "other"
        _requests_of(method, path, str(status)).inc()
        sent, received, duration, first_byte = _figures_of(path)
        sent.inc(self._sent)
        received.inc(self._received)
        duration.observe(seconds)
        if self._first_byte is not None:
            first_byte.observe(self._first_byte)
        if self.path not in PROBES:
            client = self.scope.get("client")
            fields = {"id": self._id, "method": method, "path": path, "status": status}
            fields |= self.scope["state"]["fields"] | {"received_bytes": self._received, "sent_bytes": self._sent}
            if self._first_byte is not None:
                fields["first_byte_seconds"] = round(self._first_byte, 6)
            fields["total_seconds"] = round(seconds, 6)
            if client:
                fields["client"] = harmless_id(client[0])
            log.info("request", extra={"fields": fields})

    @property
    def _template(self) -> str:
        return getattr(self.scope.get("route"), "path", "") or OTHER

    def _with_headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = [(key.lower(), value) for key, value in given if key.lower() != REQUEST_ID.encode()]
        names = {key for key, _ in headers}
        headers += [pair for pair in HEADERS if pair[0] not in names]
        headers += [(b"date", _date(int(time.time()))), (REQUEST_ID.encode(), self._id.encode())]
        if b"cache-control" not in names:
            headers.append((b"cache-control", b"no-store"))
        origin = self.header(b"origin")
        if origin and self._origins.is_shared(origin):
            headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", f"{REQUEST_ID}, retry-after".encode()),
                (b"vary", b"Origin"),
            ]
        else:
            headers.append((b"cross-origin-resource-policy", b"same-origin"))
        return headers


# The series for given labels; looking one up takes longer than counting.
_requests_of, _running_of = cache(REQUESTS.labels), cache(RUNNING.labels)


@cache
def _figures_of(path: str) -> tuple[Any, Any, Any, Any]:
    return SENT.labels(path), RECEIVED.labels(path), REQUEST_SECONDS.labels(path), FIRST_BYTE_SECONDS.labels(path)


_last_date: tuple[int, bytes] = (0, b"")


def _date(second: int) -> bytes:
    global _last_date  # noqa: PLW0603  # formatted once a second
    if _last_date[0] != second:
        _last_date = second, formatdate(second, usegmt=True).encode()
    return _last_date[1]


def _shown(value: str) -> str:
    """Return what a stranger sent, as a sentence can have it."""
    return repr(value[:100]) if value else "an empty name"
