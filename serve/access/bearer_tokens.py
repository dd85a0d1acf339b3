"""Bearer tokens: credentials of callers.

A call carries one in its metadata, `authorization: Bearer TOKEN`. All methods need it except those of the health
service: load balancers call it, and it tells nothing but that the server is up.
"""

import codecs
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.rpc.status_pb2 import Status

from rill.reloaded_files import ReloadedFiles
from rill.request_ids import REQUEST_ID, request_id
from rill.serve.access.secret_files import read_file, warn_if_others_may_read
from rill.serve.errors import StartError

FLAG = "--auth-token-file"
SHORTEST = 16  # characters of a token
MOST = 1_000  # tokens: each call is compared with all of them, which then takes 0.15 ms
CHECK_SECONDS = 1.0  # between two checks of the file
OPEN = "/grpc.health.v1.Health/"
NEEDED = "this server needs a bearer token (metadata `authorization: Bearer TOKEN`; `rill` takes --token-file)"
UNKNOWN = "invalid bearer token"

Handler = Any  # grpc.RpcMethodHandler, which has parameters in the stubs only
Metadata = Iterable[tuple[str, str | bytes]]


class BearerTokens:
    """The tokens in a file, one a line; blank lines and lines that begin with # are skipped. Raises StartError.

    The file is read again when it changes; if the new content is not valid, the old tokens stay in use.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = ReloadedFiles([path], lambda: _digests(path), StartError)
        self._clock, self._checked = clock, clock()
        warn_if_others_may_read(FLAG, path)

    def holder(self, metadata: Metadata) -> bytes | None:
        """Return the SHA-256 of the token in a call's metadata, or None if it has no valid one."""
        now = self._clock()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._file.renew()
        token = bearer_token(metadata)
        if token is None:
            return None
        digest = hashlib.sha256(token).digest()
        is_known = False
        for known in self._file.content:  # always all of them: the time it takes reveals nothing
            is_known |= hmac.compare_digest(known, digest)
        return digest if is_known else None


class RequireToken(grpc.aio.ServerInterceptor):
    """Ends calls without one of `tokens` as UNAUTHENTICATED, before reading any of the request.

    `on_refused` is called for each of them.
    """

    def __init__(self, tokens: BearerTokens, on_refused: Callable[[], None]) -> None:
        self._tokens = tokens
        # On the wire all kinds of calls are alike, and this kind reads nothing.
        self._missing: Handler = grpc.stream_stream_rpc_method_handler(_refuser(NEEDED, on_refused))
        self._wrong: Handler = grpc.stream_stream_rpc_method_handler(_refuser(UNKNOWN, on_refused))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the method's own handler, or one that refuses the call."""
        if details.method.startswith(OPEN) or self._tokens.holder(details.invocation_metadata) is not None:
            return await continuation(details)
        return self._missing if bearer_token(details.invocation_metadata) is None else self._wrong


def bearer_token(metadata: Metadata) -> bytes | None:
    """Return the token in a call's metadata, if there is one."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip().encode()
    return None


def _refuser(message: str, on_refused: Callable[[], None]) -> Callable[[Any, Any], Awaitable[None]]:
    status = Status(code=grpc.StatusCode.UNAUTHENTICATED.value[0], message=message).SerializeToString()

    async def refuse(_: Any, context: Any) -> None:
        on_refused()
        own_id = request_id(context.invocation_metadata() or ())
        metadata = ((REQUEST_ID, own_id), ("grpc-status-details-bin", status))
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, metadata)

    return refuse


def _digests(path: str) -> list[bytes]:
    """Return the SHA-256 of each token. Raises StartError, which quotes no token."""
    try:
        content = read_file(FLAG, path).removeprefix(codecs.BOM_UTF8)  # which editors on Windows write
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise StartError(f"{FLAG} {path} is not plain ASCII text") from None
    digests = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) < SHORTEST:
            raise StartError(
                f"{FLAG} {path}, line {number}: a token must have at least {SHORTEST} characters; make one with "
                "openssl rand -hex 32"
            )
        if not line.isprintable() or " " in line:
            raise StartError(f"{FLAG} {path}, line {number}: a token must not contain spaces or control characters")
        digests.append(hashlib.sha256(line.encode()).digest())
    if len(digests) > MOST:
        raise StartError(f"{FLAG} {path} has {len(digests)} tokens; the limit is {MOST}")
    if not digests:
        raise StartError(f"{FLAG} {path} has no token; make one with openssl rand -hex 32")
    return digests
