"""What a client raises, and what a server says about an error beside its status and message."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from rill.client.connection import explain
from rill.client.origin import REQUEST_ID, RESET, Origin, origin_of

LONGEST_DELAY = 86_400.0  # seconds: whatever a server asks for, a clock can wait so long

Detail = TypeVar("Detail", bound=Message)

_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


class RillError(Exception):
    """The base of the errors that the client library raises."""


class SessionStateError(RillError):
    """A method of a session was called in a state that does not allow it. The session continues unchanged."""


class ServerError(RillError):
    """The server ended a call with an error, or cannot be reached.

    `code` is the gRPC status, `details` the server's message. `retry_seconds` says when to try again and `reason` why a
    token was refused, where the server says so. `resume_token` is the last state of a session that ended; it may be
    empty. `request_id` is what the server's log has of the call; tracebacks show it. `origin` tells whether the status
    is a server's own or the network's. `field` names the field of the request that is not valid, as rill.proto has it,
    where the server says so. Errors can be pickled and copied.
    """

    origin = Origin.SERVER
    field = ""

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        retry_seconds: float | None = None,
        reason: str = "",
        resume_token: bytes = b"",
        request_id: str = "",
    ) -> None:
        super().__init__(code, details)  # what a copy is made of; the attributes follow
        self.code, self.details = code, details
        self.retry_seconds, self.reason, self.resume_token = retry_seconds, reason, resume_token
        self.request_id = ""
        self.told(request_id)

    def __str__(self) -> str:
        return self.details

    def told(self, request_id: str) -> Self:
        """Note the id of the call, unless the server told it; return the error."""
        if request_id and not self.request_id:
            self.request_id = request_id
            self.add_note(f"request id: {request_id}")
        return self

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> "ServerError":
        """Convert an error that gRPC raised, or an interceptor, which may have left out everything but a message."""
        if not callable(getattr(error, "code", None)):
            return cls(grpc.StatusCode.UNKNOWN, str(error) or type(error).__name__)
        code, details = error.code(), error.details() or error.code().name
        trailing = _trailing(error)
        status = _status(trailing)
        if code is grpc.StatusCode.CANCELLED and details == code.name:
            # No server or application says this: gRPC does, if a server that was going away did not accept the call.
            code, details = grpc.StatusCode.UNAVAILABLE, "the server did not accept the call (CANCELLED)"
        elif RESET in details and (own := _CODES.get(status.code)):  # the server's own came before the reset
            code, details = own, status.message
        failure = cls(
            code,
            explain(details),
            _retry_seconds(status),
            _reason(status),
            request_id=str(trailing.get(REQUEST_ID, "")),
        )
        failure.origin, failure.field = origin_of(code, details, trailing), _field(status)
        return failure

    @classmethod
    def ended_early(cls) -> "ServerError":
        """Return the error of a call that ended with OK and without its last message."""
        failure = cls(grpc.StatusCode.UNAVAILABLE, "the server ended the stream without a last message")
        failure.origin = Origin.NETWORK
        return failure

    def reworded(self, details: str) -> "ServerError":
        """Return the same error with another message."""
        other = ServerError(self.code, details, self.retry_seconds, self.reason, self.resume_token, self.request_id)
        other.origin, other.field = self.origin, self.field
        return other


def closed_error() -> ServerError:
    """Return the error of a call that is to be made by a client that is closed."""
    return ServerError(grpc.StatusCode.CANCELLED, "the client is closed")


def too_old_for_constraints() -> ServerError:
    """Return the error of a text whose server did not say whether it matches: it does not know constraints."""
    return ServerError(
        grpc.StatusCode.UNIMPLEMENTED,
        "the server does not know constraints: its version is too old, and the text is free",
    )


def _trailing(error: grpc.RpcError) -> dict[str, Any]:
    """Return the trailing metadata."""
    return dict(cast(Iterable[tuple[str, Any]], error.trailing_metadata() or ()))


def _status(trailing: Mapping[str, Any]) -> Status:
    """Read the status details; empty if there are none."""
    with suppress(DecodeError):
        return Status.FromString(trailing.get("grpc-status-details-bin", b""))
    return Status()


def _unpacked(status: Status, kind: type[Detail]) -> list[Detail]:
    found = []
    for packed in status.details:
        detail = kind()
        with suppress(DecodeError):
            if packed.Unpack(detail):
                found.append(detail)
    return found


def _retry_seconds(status: Status) -> float | None:
    delays = [info.retry_delay.seconds + info.retry_delay.nanos / 1e9 for info in _unpacked(status, RetryInfo)]
    return min(max(delays), LONGEST_DELAY) if delays else None


def _reason(status: Status) -> str:
    return next((info.reason for info in _unpacked(status, ErrorInfo)), "")


def _field(status: Status) -> str:
    violations = (violation for bad in _unpacked(status, BadRequest) for violation in bad.field_violations)
    return next((violation.field for violation in violations), "")
