"""What a client raises, and what a server says about an error beside its status and message."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

ENDED_EARLY = "the server ended the stream without a last message"

Detail = TypeVar("Detail", bound=Message)

# What gRPC says about a connection that failed, and what it means.
_TLS_MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate has expired or is not signed by a trusted authority",
    "Hostname Verification": "the server's certificate is for another host",
    "create security handshaker": "the certificates or the key given to this client are damaged or do not match",
    "WRONG_VERSION_NUMBER": "the server does not use TLS",
    "Socket closed": "the server closes new connections: it may require TLS or a client certificate that it trusts",
}


class RillError(Exception):
    """The base of the errors that the client library raises."""


class SessionStateError(RillError):
    """A method of a session was called in a state that does not allow it. The session continues unchanged."""


class ServerError(RillError):
    """The server ended a call with an error, or cannot be reached.

    `code` is the gRPC status, `details` the server's message. `retry_seconds` says when to try again and `reason` why a
    token was refused, where the server says so. `resume_token` is the last state of a session that ended; it may be
    empty.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        retry_seconds: float | None = None,
        reason: str = "",
        resume_token: bytes = b"",
    ) -> None:
        super().__init__(details)
        self.code, self.details = code, details
        self.retry_seconds, self.reason, self.resume_token = retry_seconds, reason, resume_token

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> "ServerError":
        """Convert an error that gRPC raised."""
        code, details, status = error.code(), error.details() or error.code().name, _status(error)
        if code is grpc.StatusCode.CANCELLED and details == code.name:
            # No server or application says this: gRPC does, if a server that was going away did not accept the call.
            code, details = grpc.StatusCode.UNAVAILABLE, "the server did not accept the call (CANCELLED)"
        return cls(code, explain(details), _retry_seconds(status), _reason(status))


def explain(details: str) -> str:
    """Put the cause before gRPC's message about a failed connection, where TLS is the cause."""
    for sign, meaning in _TLS_MEANINGS.items():
        if sign in details and details.startswith("failed to connect"):
            return f"{meaning} ({details})"
    return details


def _status(error: grpc.RpcError) -> Status:
    """Read the status details from the trailing metadata; empty if there are none."""
    pairs = cast(Iterable[tuple[str, Any]], error.trailing_metadata() or ())
    for key, value in pairs:
        if key == "grpc-status-details-bin":
            with suppress(DecodeError):
                return Status.FromString(value)
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
    return max((info.retry_delay.ToMilliseconds() / 1000 for info in _unpacked(status, RetryInfo)), default=None)


def _reason(status: Status) -> str:
    return next((info.reason for info in _unpacked(status, ErrorInfo)), "")
