"""The addresses of this machine that a server can listen on, and why it cannot."""

import errno
import socket

from rill.addresses import DEFAULT_PORT, checked_host

PRIVILEGED = 1024  # the first port that needs no privileges
LOCALHOST = ("127.0.0.1", "::1")  # also where the system's table of hosts has only one of them


def usable_hosts(host: str) -> list[str]:
    """Return the IP addresses of a host that are this machine's. Raises ValueError, with the cause, if it has none."""
    name = checked_host(host)
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        found = []
    hosts = list(LOCALHOST) if name == "localhost" else list(dict.fromkeys(_numeric(entry[4]) for entry in found))
    if not hosts:
        raise ValueError("there is no host of that name")
    if hosts == ["::"] and not is_usable("::"):  # there is no IPv6 here
        return ["0.0.0.0"]
    usable = [address for address in hosts if is_usable(address)]
    if not usable:
        raise ValueError("it is not an address of this machine")
    return usable


def _numeric(address: tuple[object, ...]) -> str:
    """Return an IP address with its zone, if it has one."""
    host, scope = str(address[0]), address[3] if len(address) > 3 else 0  # IPv6 has four fields
    return f"{host.partition('%')[0]}%{socket.if_indextoname(scope)}" if isinstance(scope, int) and scope else host


def is_usable(host: str) -> bool:
    """Tell whether an IP address is one of this machine's."""
    try:
        with socket.socket(family(host), socket.SOCK_STREAM) as probe:
            probe.bind(socket_address(host, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def family(host: str) -> socket.AddressFamily:
    """Return the address family of an IP address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def socket_address(host: str, port: int) -> tuple[object, ...]:
    """Return an IP address, which may have a zone, and a port as sockets take them."""
    if ":" not in host:
        return (host, port)
    bare, _, zone = host.partition("%")
    return (bare, port, 0, socket.if_nametoindex(zone) if zone else 0)


def cause(error: OSError, port: int = DEFAULT_PORT, flag: str = "--port") -> str:
    """Say why an address cannot be bound, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"in use by another program: stop it, or choose another {flag} (0 takes a free one)"
    if error.errno in (errno.EACCES, errno.EPERM):
        if port < PRIVILEGED:
            return f"permission denied: ports below {PRIVILEGED} need privileges; choose another {flag}"
        return "permission denied"
    if error.errno == errno.ENOENT:
        return "there is no such folder"
    return (error.strerror or str(error)).lower()
