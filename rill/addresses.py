"""Network addresses: what people type, in the form that gRPC understands, and which of them are on this machine.

Canonical addresses are HOST:PORT, https://HOST:PORT (with TLS), unix:PATH and unix-abstract:NAME, or in a scheme that
only gRPC understands. HOST is a name, an IPv4 address, or an IPv6 address in brackets.
"""

import ipaddress
import re
from urllib.parse import quote, unquote

DEFAULT_PORT = 50051
LAST_PORT = 65535
SOCKET_PATH_BYTES = 107  # of a Unix socket, at most

_DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": DEFAULT_PORT, "grpcs": DEFAULT_PORT, "tcp": DEFAULT_PORT}
_WITH_TLS = ("https", "grpcs")
_ONLY_GRPC = ("vsock", "xds", "google-c2p")  # schemes that are passed on as they are
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_NOT_IN_HOSTS = re.compile(r"[\x00-\x20\x7f<>\"'`{}|\\^*,;()@?#/]")


def split_addresses(target: str) -> list[str]:
    """Return the canonical form of each address in "HOST:PORT[,HOST:PORT…]", as people type them.

    The port is 50051 where none is given; of a URL it is that of its scheme. Raises ValueError, with a sentence, for
    what is not an address, and TypeError for what is not a str.
    """
    if not issubclass(kind := type(target), str):
        raise TypeError(f"target must be a str such as 'HOST:PORT,HOST:PORT', not {kind.__name__}")
    addresses = [address.strip() for address in target.split(",")]
    if not all(addresses):
        raise ValueError(f"target must be HOST:PORT or several separated by commas, not {target!r}")
    return [_canonical(address) for address in addresses]


def join(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 address in brackets."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def socket_path(address: str) -> str | None:
    """Return the path of a Unix socket in the file system, None for any other address. Raises ValueError.

    A path alone is such an address, too, if it begins with a slash or a dot.
    """
    if address.startswith(("/", "./", "../")):
        path = address
    elif address[:5].lower() == "unix:":
        path = unquote(address[5:])
        if path.startswith("//"):
            if path[2:3] != "/":
                raise ValueError(f"{address!r} must be unix:PATH, or unix:///PATH with an absolute path")
            path = path[2:]
    else:
        return None
    if not path or "\0" in path or path.endswith("/"):
        raise ValueError(f"{address!r} does not name a Unix socket: give unix:PATH")
    if len(path.encode()) > SOCKET_PATH_BYTES:
        raise ValueError(
            f"{address!r} has a path of {len(path.encode())} bytes; Unix sockets have at most {SOCKET_PATH_BYTES}"
        )
    return path


def unix_address(path: str) -> str:
    """Return the canonical address of a Unix socket."""
    return f"unix:{quote(path)}"


def abstract_name(address: str) -> str | None:
    """Return the name in unix-abstract:NAME, None for any other address. Raises ValueError."""
    scheme, _, name = address.partition(":")
    if scheme.lower() != "unix-abstract":
        return None
    if not 0 < len(unquote(name).encode()) <= SOCKET_PATH_BYTES:
        raise ValueError(f"{address!r} must have a name of 1 to {SOCKET_PATH_BYTES} bytes")
    return unquote(name)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_local(address: str) -> bool:
    """Tell whether a canonical address is on this machine."""
    scheme, separator, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("dns", "ipv4", "ipv6", "https") and separator:
        address = rest.rpartition("/")[2]
    return is_loopback(address.rpartition(":")[0] or address)


def checked_host(host: str) -> str:
    """Return a host to listen on, without brackets. Raises ValueError for what is not a host name or an IP address."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        if _is_ipv6(bare):
            return bare
        name, _, port = host.rpartition(":")
        if _SCHEME.match(host):
            raise ValueError(f"{host!r} must be a host name or an IP address, without a scheme")
        if port.isdecimal() and (_is_host(name) or _is_ipv6(name.strip("[]"))):
            raise ValueError(f"{host!r} must be a host without its port, which is an option of its own")
        raise ValueError(f"{host!r} is not an IPv6 address")
    if host == "*":
        raise ValueError("'*' is not a host: use :: for all addresses of this machine, or 0.0.0.0 for those of IPv4")
    return _host_name(bare, host)


def checked_origin(origin: str) -> str:
    """Return the origin of a web page, SCHEME://HOST[:PORT]. Raises ValueError for what is not one."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://([^/\s@?#:\[\]*]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?", origin):
        raise ValueError(f"{origin} must be the origin of a page, SCHEME://HOST or SCHEME://HOST:PORT, without a path")
    return origin


def _canonical(typed: str) -> str:
    """Return the canonical form of one address. Raises ValueError."""
    scheme, _, rest = typed.partition(":")
    scheme = scheme.lower()
    if scheme in (*_ONLY_GRPC, "dns") and not re.fullmatch(r"[!-~]+", typed):
        raise ValueError(f"target {typed!r} must be HOST:PORT")
    try:
        if (path := socket_path(typed)) is not None:
            return unix_address(path)
        if (name := abstract_name(typed)) is not None:
            return f"unix-abstract:{quote(name)}"
    except ValueError as error:
        raise ValueError(f"target {error}") from None
    if scheme in _ONLY_GRPC and rest:
        return typed
    if scheme in ("dns", "ipv4", "ipv6") and not re.fullmatch(r"\d+", rest):
        resolver, slash, place = rest.rpartition("/")
        return f"{scheme}:{resolver}{slash}{_host_and_port(place, typed, DEFAULT_PORT)}"
    if not (url := _SCHEME.fullmatch(typed)):
        return _host_and_port(typed.removesuffix("/"), typed, DEFAULT_PORT)
    if scheme not in _DEFAULT_PORTS:
        raise ValueError(f"target {typed!r} has an unknown scheme, {scheme}; give HOST:PORT")
    place = url[2].removesuffix("/")
    if not place or place.startswith(":"):
        raise ValueError(f"target {typed!r} has no host")
    address = _host_and_port(place, typed, _DEFAULT_PORTS[scheme])
    return f"https://{address}" if scheme in _WITH_TLS else address


def _host_and_port(place: str, typed: str, default_port: int) -> str:
    """Return HOST:PORT. Raises ValueError; `typed` is what its message names."""
    if "@" in place:
        raise ValueError("target must be HOST:PORT, without a user or a password; a bearer token has its own option")
    if found := re.search(r"[/?#]", place):
        raise ValueError(f"target {typed!r} has a path, {place[found.start() :]}; give HOST:PORT")
    if place.isascii() and place.isdecimal():  # a port alone, as in :50051
        place = f":{place}"
    if bracketed := re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", place):
        host, port = bracketed[1], bracketed[2]
        if not _is_ipv6(host):
            raise ValueError(f"target {typed!r} has brackets, but {host!r} is not an IPv6 address")
    elif _is_ipv6(place):
        host, port = place, None
    else:
        host, colon, port = place.rpartition(":")
        if not colon:
            host, port = place, None
        if _is_ipv6(host):
            raise ValueError(f"target {typed!r} needs brackets around its IPv6 address: [{host}]:{port}")
        host = _host_name(host, typed, "target ") if host else "localhost"
    number = default_port if port is None else _port(port, typed)
    return join(_CONNECTABLE.get(host, host), number)


# Servers listen on these; a client's connection to them goes to this machine, but not on every system.
_CONNECTABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def _port(port: str, typed: str) -> int:
    if not (port.isascii() and port.isdecimal()):
        wrong = f"{port!r} is not a number" if port else "there is none behind the colon"
        raise ValueError(f"target {typed!r} needs a port from 1 to {LAST_PORT}: {wrong}")
    if int(port[:9]) > LAST_PORT:  # the first digits of a very long number
        raise ValueError(f"target {typed!r} has a port above {LAST_PORT}")
    if not int(port):
        raise ValueError(f"target {typed!r} has port 0, where no server listens: give the port that it printed")
    return int(port)


def _is_ipv6(host: str) -> bool:
    """Tell whether this is an IPv6 address, with or without a zone: fe80::1%eth0."""
    try:
        zone = ipaddress.IPv6Address(host).scope_id
    except ValueError:
        return False
    return not _NOT_IN_HOSTS.search(zone or "")


def _is_host(name: str) -> bool:
    try:
        _host_name(name, name)
    except ValueError:
        return False
    return True


def _has_other_characters(name: str) -> bool:
    """Tell whether a name has characters that no host name has."""
    return any(character in name for character in ":[]") or _NOT_IN_HOSTS.search(name) is not None


def _host_name(name: str, typed: str, what: str = "") -> str:
    """Return a host name in lower case and ASCII. Raises ValueError."""
    if not name or _has_other_characters(name):
        wanted = "must be HOST:PORT" if what else "is not a host name or an IP address"
        raise ValueError(f"{what}{typed!r} {wanted}")
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        ascii_name = ""
    if not ascii_name or _has_other_characters(ascii_name):  # normalised, some characters are spaces or slashes
        raise ValueError(f"{what}{typed!r} is not a valid host name")
    return "localhost" if ascii_name.lower() == "localhost." else ascii_name.lower()
