"""The sockets that the gateway listens on."""

import errno
import socket
from contextlib import ExitStack

from rill.addresses import join
from rill.gateway.config import GatewayConfig, StartError
from rill.listening import cause, family, socket_address, usable_hosts

BACKLOG = 2048  # connections that the system makes before the gateway takes them
TRIES = 20  # to find a port that is free at all addresses


def listeners(config: GatewayConfig) -> list[socket.socket]:
    """Return listening sockets on one port, for each address of the host. Raises StartError, with the cause."""
    where = f"cannot listen on {join(config.host, config.port)}"
    try:
        hosts = usable_hosts(config.host)
    except ValueError as error:
        raise StartError(f"{where}: {error}") from None
    for tries_left in reversed(range(TRIES)):
        with ExitStack() as stack:
            port, sockets = config.port, []
            try:
                for host in hosts:
                    sockets.append(stack.enter_context(_listener(host, port)))
                    port = sockets[-1].getsockname()[1]
            except OSError as error:
                if config.port == 0 and error.errno == errno.EADDRINUSE and tries_left:
                    continue  # it is free at the first address only
                raise StartError(f"{where}: {cause(error, port)}") from None
            stack.pop_all()
            return sockets
    raise AssertionError  # the last try raises or returns


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket(family(host), socket.SOCK_STREAM)
    try:
        if ":" in host:  # "::" is all addresses, of IPv4 too
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        # Connections of a gateway that has ended do not matter.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(socket_address(host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
