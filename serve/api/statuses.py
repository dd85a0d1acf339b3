"""From errors to gRPC statuses with google.rpc details, in one place."""

from functools import cache
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from rill.serve.errors import (
    BrokenEngineError,
    ClientLimitError,
    CompilerError,
    DrainingError,
    EngineError,
    IdleError,
    ModelNotFoundError,
    NoConstraintsError,
    OtherModelError,
    OutOfOrderError,
    RequestError,
    ServeError,
    StalledError,
    TokenError,
    WaitingLineFullError,
)

if TYPE_CHECKING:  # the class has type parameters in the stubs only
    from typing import Any as Anything

    Context = grpc.aio.ServicerContext[Anything, Anything]
else:
    Context = grpc.aio.ServicerContext

DOMAIN = "rill"  # of the reasons in ErrorInfo
LONGEST = 1000  # bytes of a message: it is sent three times, and gRPC allows 8 KB of trailing metadata in total

_CODES: dict[type[ServeError], grpc.StatusCode] = {
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    TokenError: grpc.StatusCode.INVALID_ARGUMENT,
    OtherModelError: grpc.StatusCode.FAILED_PRECONDITION,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    NoConstraintsError: grpc.StatusCode.FAILED_PRECONDITION,
    OutOfOrderError: grpc.StatusCode.FAILED_PRECONDITION,
    WaitingLineFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ClientLimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StalledError: grpc.StatusCode.ABORTED,
    IdleError: grpc.StatusCode.ABORTED,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    CompilerError: grpc.StatusCode.INTERNAL,
    EngineError: grpc.StatusCode.INTERNAL,
    BrokenEngineError: grpc.StatusCode.INTERNAL,
}

_REASONS: dict[type[ServeError], str] = {
    OtherModelError: "RESUME_TOKEN_OTHER_MODEL",
    NoConstraintsError: "MODEL_WITHOUT_CONSTRAINTS",
    OutOfOrderError: "ACTION_OUT_OF_ORDER",
    StalledError: "READER_STALLED",
    IdleError: "SESSION_IDLE",
    CompilerError: "COMPILER_FAILED",
    EngineError: "ENGINE_ROUND_FAILED",
    BrokenEngineError: "ENGINE_ROUND_FAILED",
}


def code_of(error: ServeError) -> grpc.StatusCode:
    """Return the status of a call that ends with `error`."""
    return _CODES[type(error)]


def reason_of(error: ServeError) -> str:
    """Return one of a few words for the error, for the label of a metric."""
    match error:
        case TokenError():
            return f"resume_token_{error.reason.lower()}"
        case WaitingLineFullError():
            return "waiting_line_full"
        case ClientLimitError():
            return "client_limit"
        case DrainingError():
            return "draining"
        case _:
            return _REASONS.get(type(error), code_of(error).name).lower()


def set_status(context: Context, error: ServeError) -> None:
    """Set the status of `error`, for when the handler returns; with `abort`, that takes a fifth longer.

    The details go where `grpc_status.rpc_status` reads them.
    """
    code, message = code_of(error), _message(error)
    # Without details, too: a proxy may reset the stream behind the status, which gRPC then forgets.
    status = Status(code=code.value[0], message=message, details=_details(error))
    metadata = tuple(context.trailing_metadata() or ())
    context.set_trailing_metadata((*metadata, ("grpc-status-details-bin", status.SerializeToString())))
    context.set_code(code)
    context.set_details(message)


def _message(error: ServeError) -> str:
    """Return the message, short enough for trailing metadata: it may quote a request."""
    message = str(error).encode()
    return message.decode() if len(message) <= LONGEST else message[:LONGEST].decode(errors="ignore") + "…"


def _details(error: ServeError) -> list[Any]:
    match error:
        case RequestError():
            violation = BadRequest.FieldViolation(field=error.field, description=_message(error))
            return [_packed(BadRequest(field_violations=[violation]))]
        case TokenError():
            return [_packed(ErrorInfo(reason=f"RESUME_TOKEN_{error.reason}", domain=DOMAIN))]
        case WaitingLineFullError() | ClientLimitError():
            return [_retry_info(error.retry_seconds)]
        case _ if reason := _REASONS.get(type(error)):
            return [_packed(ErrorInfo(reason=reason, domain=DOMAIN))]
        case _:
            return []


@cache  # refusals are frequent
def _retry_info(seconds: float) -> Any:
    delay = Duration()
    delay.FromMilliseconds(int(seconds * 1000))
    return _packed(RetryInfo(retry_delay=delay))


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
