"""Which statuses a server gave, and which the network."""

import grpc
import pytest

from rill.client.origin import Origin, origin_of

Code = grpc.StatusCode
MARKED, BARE = ["x-request-id"], []


@pytest.mark.parametrize(
    "code",
    [Code.UNKNOWN, Code.INTERNAL, Code.CANCELLED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED],
)
def test_a_status_without_an_id_is_the_networks(code):
    assert origin_of(code, "gone", BARE) is Origin.NETWORK
    assert origin_of(code, "gone", MARKED) is Origin.SERVER


@pytest.mark.parametrize(
    "code",
    [
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.ABORTED,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.DATA_LOSS,
        Code.UNAUTHENTICATED,
    ],
)
def test_what_the_network_never_says_is_a_servers(code):
    """Of servers of an earlier version, too, which mark fewer of their statuses."""
    assert origin_of(code, "no", BARE) is Origin.SERVER


@pytest.mark.parametrize(
    ("status", "code", "origin"),
    [
        (200, Code.UNKNOWN, Origin.SERVER),
        (302, Code.UNKNOWN, Origin.SERVER),
        (400, Code.INTERNAL, Origin.SERVER),
        (401, Code.UNAUTHENTICATED, Origin.SERVER),
        (403, Code.PERMISSION_DENIED, Origin.SERVER),
        (404, Code.UNIMPLEMENTED, Origin.SERVER),
        (408, Code.UNKNOWN, Origin.NETWORK),
        (413, Code.UNKNOWN, Origin.SERVER),
        (429, Code.UNAVAILABLE, Origin.NETWORK),
        (431, Code.UNKNOWN, Origin.SERVER),
        (500, Code.UNKNOWN, Origin.NETWORK),
        (501, Code.UNKNOWN, Origin.SERVER),
        (502, Code.UNAVAILABLE, Origin.NETWORK),
        (503, Code.UNAVAILABLE, Origin.NETWORK),
        (504, Code.UNAVAILABLE, Origin.NETWORK),
        (520, Code.UNKNOWN, Origin.NETWORK),
    ],
)
@pytest.mark.parametrize("trailing", [MARKED, BARE])  # proxies mark their own answers as well
def test_pages_of_proxies(status, code, origin, trailing):
    assert origin_of(code, f"Received http2 header with status: {status}", trailing) is origin


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5000000 vs. 4194304)"),
        (Code.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (5000000 vs. 4194304)"),
        (Code.RESOURCE_EXHAUSTED, "received metadata size exceeds hard limit (20000 vs. 16384)"),
        (Code.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 4194304: 5000000"),
        (Code.CANCELLED, "Locally cancelled by application!"),
        (Code.CANCELLED, "Channel closed!"),
        (Code.INTERNAL, "Exception deserializing response!"),
        (Code.INTERNAL, "Exception serializing request!"),
    ],
)
def test_what_happened_here_is_not_the_networks(code, details):
    assert origin_of(code, details, BARE) is Origin.SERVER


@pytest.mark.parametrize(
    "details",
    [
        "Stream removed (RST_STREAM (Received RST_STREAM with error code 11))",
        "Too many pending requests for this server",
    ],
)
def test_exhausted_for_now(details):
    assert origin_of(Code.RESOURCE_EXHAUSTED, details, BARE) is Origin.NETWORK


@pytest.mark.parametrize("trailing", [MARKED, BARE])
def test_a_reset_behind_a_status(trailing):
    reset = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"
    assert origin_of(Code.CANCELLED, reset, trailing) is Origin.NETWORK
    assert origin_of(Code.PERMISSION_DENIED, reset, trailing) is Origin.SERVER


def test_connections():
    lost = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    assert origin_of(Code.UNAVAILABLE, lost + "Connection refused", BARE) is Origin.CONNECTION
    assert origin_of(Code.UNAVAILABLE, "errors resolving a:1: no", BARE) is Origin.CONNECTION
    for reason in ("Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed."):
        assert origin_of(Code.UNAVAILABLE, lost + reason, BARE) is Origin.TLS
