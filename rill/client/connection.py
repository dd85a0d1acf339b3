"""The options of the gRPC channels of both clients, and what a connection that fails means."""

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from rill.addresses import is_local

Options = Sequence[tuple[str, int | str]]

CHANNEL_OPTIONS: Options = [
    # Each client has connections of its own: where several processes share a port, they spread over all of them.
    ("grpc.use_local_subchannel_pool", 1),
    # Find a restarted server soon: by default, gRPC waits up to two minutes between attempts to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Despite its name, this limits how long an attempt to connect may take; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that has failed closes no connection: ping it during calls, even during quiet ones.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # for a ping that was sent for other reasons, in place of keepalive's
    ("grpc.http2.max_pings_without_data", 0),
]

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # variables that gRPC reads, in this order

NO_CONNECTION = ("failed to connect", "errors resolving", "DNS resolution failed")  # begin gRPC's messages
# What gRPC says about a connection that failed, and what it means: the first that is found applies.
_MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate has expired or is not signed by a trusted authority: "
    "--tls-ca (root_certificates) names another authority",
    "Hostname Verification": "the server's certificate is for another host: --tls-server-name (server_name) gives its"
    " name",
    "create security handshaker": "the certificates or the key given to this client are damaged or do not match",
    "WRONG_VERSION_NUMBER": "the server does not use TLS: connect without --tls and https://, or to another port",
    "Failed parsing HTTP/2": "what listens there is not a gRPC server: check the port",
    "before receiving SETTINGS": "what listens there does not answer: it is not a gRPC server, or it requires TLS",
    "Endpoint closing": "what listens there does not answer: it is not a gRPC server, or it hangs",
    "Socket closed": "the server closes new connections: it may require TLS or a client certificate that it trusts",
    "Connection reset": "the server closes new connections: it may require TLS or a client certificate that it trusts",
    "timed out": "nothing answers: the machine is down, or a firewall is in the way",
    "No route to host": "there is no way to that machine from here",
    "Network is unreachable": "there is no way to that machine from here",
    "Permission denied": "this user may not connect to it",
}
_CAUSE = re.compile(r"last error: \w+: (?:ipv[46]:(\S+:\d+)|(unix(?:-abstract)?:\S+)): ")  # then the cause
_START = "start one there (rill serve BUNDLE), or give the address of one that is running"


def options_for(address: str, is_direct: bool = False) -> Options:
    """Return the options of a channel to a canonical address, beside those that its user chooses.

    An HTTP proxy that the environment names is used for other machines only, and not at all if `is_direct`.
    """
    return [("grpc.enable_http_proxy", 0)] if is_direct or is_local(address) else []


def explain(details: str) -> str:
    """Say what gRPC's message about a failed connection means; other messages remain as they are."""
    if re.match("Received http2 header with status: 50[234]", details):
        return f"the proxy there reaches no server ({details})"
    if details.startswith("Received http2 header with status"):
        return f"what listens there is a web server or a proxy, not rill serve ({details})"
    if details.startswith(NO_CONNECTION[1:]) and (name := re.search(r"(?:resolving|failed for) (\S+):\d+:", details)):
        return f"there is no host {name[1]}, or its name cannot be resolved now"
    return _explain_connection(details) if details.startswith(NO_CONNECTION) else details


def _explain_connection(details: str) -> str:
    address = _address_in(details)
    if address and (proxy := _proxy_at(address)):
        return f"the proxy at {address}, which the environment variable {proxy} names, cannot be used ({details})"
    if address and "Connection refused" in details:
        return f"no server listens at {address} (connection refused): {_START}"
    if address and "No such file" in details:
        return f"no server listens at {address} (there is no such socket): {_START}"
    meaning = next((meaning for sign, meaning in _MEANINGS.items() if sign in details), "")
    if not (address and meaning):
        return f"{meaning} ({details})" if meaning else details
    cause = _CAUSE.split(details, maxsplit=1)[-1].partition(": Invalid certificate")[0]
    return f"{address}: {meaning} ({cause})"


def _address_in(details: str) -> str:
    """Return the address in gRPC's message, as people write it; empty if there is none."""
    found = _CAUSE.search(details)
    return unquote(found[1] or "") or found[2] if found else ""


def _proxy_at(address: str) -> str:
    """Return the variable that names a proxy with this address's port; empty if none does."""
    for name in _PROXIES:
        try:
            port = urlsplit(os.environ.get(name, "")).port
        except ValueError:
            continue
        if port is not None:
            return name if address.endswith(f":{port}") else ""
    return ""
