"""What a request is refused with, in the form of OpenAI's errors."""

import math
from collections.abc import Mapping

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse

from rill.client.errors import ServerError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
# By the status of a server. 499 is nginx's, for a client that has left.
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


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
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @classmethod
    def from_server(cls, error: ServerError) -> "ApiError":
        """Convert the error of a server."""
        status = _STATUSES.get(error.code, 500)
        headers = {}
        if status in (429, 503):
            headers["retry-after"] = str(max(math.ceil(error.retry_seconds or 1.0), 1))
        return cls(status, str(error), code=error.reason.lower() or None, headers=headers)

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


async def answer_with_error(request: Request, error: Exception) -> JSONResponse:
    """Return the answer to a request that raised an ApiError or a ServerError."""
    if isinstance(error, ServerError):
        error = ApiError.from_server(error)
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)
