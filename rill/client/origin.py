"""Who gave the status of a call: a Rill server, the network with its proxies, or gRPC in this process.

A server marks each of its statuses with x-request-id in the trailing metadata. In the initial metadata it proves
nothing: proxies add one of their own there.
"""

import re
from collections.abc import Container
from enum import Enum

from grpc import StatusCode

from rill.client.connection import NO_CONNECTION

REQUEST_ID = "x-request-id"
RESET = "RST_STREAM"  # in what gRPC says about a stream that was reset


class Origin(Enum):
    """Where a status comes from, and so whether the same call may succeed later."""

    SERVER = "server"  # or this process; code and details tell whether to try again
    NETWORK = "network"  # the call was lost on its way, or a proxy could not pass it on
    CONNECTION = "connection"  # there is no connection
    TLS = "tls"  # nor will there be one: certificates or protocols do not match


_TLS = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "create security handshaker", "WRONG_VERSION_NUMBER")

# gRPC's own words, where it ended a call here: the caller did, or a message could not be converted.
_HERE = (
    "Locally cancelled by application!",
    "Cancelled upon garbage collection!",
    "Channel closed!",
    "Exception deserializing response!",
    "Exception serializing request!",
    "Exception iterating requests!",
)
_PAGE = re.compile(r"http2 header with status: (\d+)")  # a proxy's own answer
_TOO_EARLY = (408, 425, 429)  # the only answers from 400 to 499 that another try may change
_NEVER = (501, 505, 511)  # the answers from 500 on that it will not
# Of a message that is too large, here or there, the same call would be refused again.
_EXHAUSTED_FOR_NOW = "pending requests"
_LOST = (
    StatusCode.UNAVAILABLE,
    StatusCode.UNKNOWN,  # HAProxy, where a backend is lost: the stream ends without trailers
    StatusCode.INTERNAL,  # nginx and Envoy: the stream is reset
    StatusCode.CANCELLED,  # the same, with another error code
    StatusCode.DEADLINE_EXCEEDED,  # a proxy's, unless the caller's own has passed
    StatusCode.RESOURCE_EXHAUSTED,
)


def origin_of(code: StatusCode, details: str, trailing: Container[str]) -> Origin:
    """Return where a status comes from; `trailing` has the names of its trailing metadata."""
    if code is StatusCode.UNAVAILABLE and details.startswith(NO_CONNECTION):
        return Origin.TLS if any(sign in details for sign in _TLS) else Origin.CONNECTION
    if page := _PAGE.search(details):
        status = int(page[1])
        may_change = status in _TOO_EARLY or (status >= 500 and status not in _NEVER)
        return Origin.NETWORK if may_change else Origin.SERVER
    if code in _LOST and RESET in details:  # HAProxy resets a session behind its status, which gRPC then forgets
        return Origin.NETWORK
    if REQUEST_ID in trailing or details in _HERE or code not in _LOST:
        return Origin.SERVER
    if code is StatusCode.RESOURCE_EXHAUSTED and _EXHAUSTED_FOR_NOW not in details:
        return Origin.SERVER
    return Origin.NETWORK
