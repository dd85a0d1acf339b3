"""What a request is refused with, in the form of OpenAI's errors."""

import json
import math
import re
from collections.abc import Mapping

import grpc
from starlette.requests import Request
from starlette.responses import Response

from rill.client.errors import ServerError
from rill.client.origin import Origin

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
# By the status of a server. 499 is nginx's, for a client that has left.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,  # a model that cannot stream
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_OTHER_MODEL = "RESUME_TOKEN_OTHER_MODEL"
_CODES = {401: "invalid_api_key", 404: "model_not_found"}  # OpenAI's words

# How a bearer token is sent, in the words of a server and of HTTP.
_TOKEN_IN_METADATA = "(metadata `authorization: Bearer TOKEN`; `rill` takes --token-file)"
_TOKEN_IN_HEADER = "(header `authorization: Bearer TOKEN`)"

# The fields of rill.proto, and of HTTP where the names differ.
FIELDS = {"max_chars": "max_tokens", "include_stop": "include_stop_str_in_output"}

# OpenAI's clients repeat requests that got one of these, which are the same the next time.
_NO_RETRY = (409, 500, 501)


class ApiError(Exception):
    """An HTTP status and a sentence for the caller; `param` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, param, code, headers)  # what a copy is made of
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def __str__(self) -> str:
        return self.message

    @classmethod
    def from_server(cls, error: ServerError, names: Mapping[str, str] = FIELDS) -> "ApiError":
        """Convert the error of a server; `names` has those of rill.proto that the caller knows by another one."""
        status = 409 if error.reason == _OTHER_MODEL else _STATUSES.get(error.code, 500)
        if status == 429 and error.retry_seconds is None and error.origin is Origin.SERVER:
            status = 413  # a message that is too large
        message, param, headers = str(error).replace(_TOKEN_IN_METADATA, _TOKEN_IN_HEADER), None, {}
        if error.field:
            field = error.field.rpartition(".")[2]
            param = names.get(field, field)
            message = re.sub(rf"\b{re.escape(field)}\b", param, message, count=1)
        elif error.reason.startswith("RESUME_TOKEN_"):
            param = "resume_token"
        elif error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            param = "model"
        if status in (429, 503):
            headers["retry-after"] = str(max(math.ceil(error.retry_seconds or 1.0), 1))
        if status in _NO_RETRY and error.reason != "ENGINE_ROUND_FAILED":
            headers["x-should-retry"] = "false"
        return cls(status, message, param, error.reason.lower() or _CODES.get(status), headers)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def json(self) -> bytes:
        """`body` in ASCII: a message may quote what UTF-8 cannot hold."""
        return json.dumps(self.body).encode()


def draining_error() -> ApiError:
    """Return the error of what the gateway cannot do any more."""
    headers = {"retry-after": "1", "connection": "close"}
    return ApiError(503, "the gateway is shutting down", code="draining", headers=headers)


def as_api_error(error: Exception, names: Mapping[str, str] = FIELDS) -> ApiError:
    """Return an ApiError as it is, and that of a ServerError; `names` as for `from_server`."""
    if isinstance(error, ServerError):
        return ApiError.from_server(error, names)
    assert isinstance(error, ApiError)
    return error


async def answer_with_error(request: Request, error: Exception) -> Response:
    """Return the answer to a request that raised an ApiError or a ServerError."""
    refusal = as_api_error(error)
    return Response(refusal.json, refusal.status, refusal.headers, "application/json")
