"""Bearer tokens: who may call this server.

A call has one in its metadata, `authorization: Bearer TOKEN`. All methods need it but health's: load balancers ask for
that, and it says nothing but that the server is there.
"""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from rill.serve.access.reloaded_files import ReloadedFiles, read_file, warn_if_others_may_read
from rill.serve.errors import StartError
from rill.serve.observe.metrics import CALLS, REJECTIONS

FLAG = "--auth-token-file"
SHORTEST = 16  # characters of a token
MOST = 1_000  # tokens: a call is compared with all of them, which takes 0.15 ms then
CHECK_SECONDS = 1.0  # between two looks at the file
OPEN = "/grpc.health.v1.Health/"
NEEDED = "this server needs a bearer token (metadata `authorization: Bearer TOKEN`; `rill` takes --token-file)"
UNKNOWN = "the bearer token is not one of this server's"

Handler = Any  # grpc.RpcMethodHandler, which has parameters in the stubs only
Metadata = Iterable[tuple[str, str | bytes]]


class BearerTokens:
    """The tokens in a file, one a line; blank lines and what begins with # are skipped. Raises StartError.

    The file is read again when it changes; if it then makes no sense, the tokens so far stay.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = ReloadedFiles([path], lambda: _digests(path))
        self._clock, self._looked = clock, clock()
        warn_if_others_may_read(FLAG, path)

    def holder(self, metadata: Metadata) -> bytes | None:
        """Whose call has this metadata: the SHA-256 of its token, or None if it has none of this server's."""
        now = self._clock()
        if now - self._looked >= CHECK_SECONDS:
            self._looked = now
            self._file.renew()
        token = bearer_token(metadata)
        if token is None:
            return None
        digest = hashlib.sha256(token).digest()
        is_known = False
        for known in self._file.content:  # all of them: how long it takes tells nothing about any
            is_known |= hmac.compare_digest(known, digest)
        return digest if is_known else None


class RequireToken(grpc.aio.ServerInterceptor):
    """Ends calls without a token of `tokens` as UNAUTHENTICATED, before anything of the request is read."""

    def __init__(self, tokens: BearerTokens) -> None:
        self._tokens = tokens
        # On the wire all kinds of calls are alike, and this kind reads nothing.
        self._missing: Handler = grpc.stream_stream_rpc_method_handler(_refuse(NEEDED))
        self._wrong: Handler = grpc.stream_stream_rpc_method_handler(_refuse(UNKNOWN))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's own handler, or one that refuses."""
        if details.method.startswith(OPEN) or self._tokens.holder(details.invocation_metadata) is not None:
            return await continuation(details)
        return self._missing if bearer_token(details.invocation_metadata) is None else self._wrong


def bearer_token(metadata: Metadata) -> bytes | None:
    """The token of a call's metadata, if it has one."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip().encode()
    return None


def _refuse(message: str) -> Callable[[Any, Any], Awaitable[None]]:
    async def refuse(_: Any, context: Any) -> None:
        # Under no method: one that does not exist is refused here too.
        CALLS.labels("", "", grpc.StatusCode.UNAUTHENTICATED.name).inc()
        REJECTIONS.labels("", "unauthenticated").inc()
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

    return refuse


def _digests(path: str) -> list[bytes]:
    """The SHA-256 of each token. Raises StartError, which quotes none."""
    try:
        lines = read_file(FLAG, path).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise StartError(f"{FLAG} {path} is not plain ASCII text") from None
    digests = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) < SHORTEST:
            raise StartError(
                f"{FLAG} {path}, line {number}: a token has at least {SHORTEST} characters; openssl rand -hex 32 makes "
                "one"
            )
        if not line.isprintable() or " " in line:
            raise StartError(f"{FLAG} {path}, line {number}: a token has neither spaces nor control characters")
        digests.append(hashlib.sha256(line.encode()).digest())
    if len(digests) > MOST:
        raise StartError(f"{FLAG} {path} has {len(digests)} tokens; at most {MOST} are compared with")
    if not digests:
        raise StartError(f"{FLAG} {path} has no token; openssl rand -hex 32 makes one")
    return digests
