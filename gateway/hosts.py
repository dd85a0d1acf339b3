"""Who may ask: the names under which the gateway is reached, and the origins of pages that use it.

A browser sends requests to this machine for any page that it shows. Such a page is told apart by its origin, and one
whose own name leads to this machine (DNS rebinding) by the name in `Host`.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from rill.addresses import checked_host

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Hosts:
    """The names of the gateway: `host` is what it listens on, `allowed` further ones. Case does not matter."""

    def __init__(self, host: str, allowed: Sequence[str]) -> None:
        self._names = {"localhost", checked_host(host), *(checked_host(name) for name in allowed)}

    def is_known(self, header: str) -> bool:
        """Tell whether a `Host` header has one of the names, or an IP address, which no other name can lead to."""
        host = _split(header)[0]
        if not host or host in self._names or host.endswith(".localhost"):
            return bool(host)
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


class Origins:
    """The origins of pages that may use the gateway: its own, and `cors`."""

    def __init__(self, cors: Sequence[str], is_encrypted: bool) -> None:
        self._cors, self._is_encrypted = {_canonical(origin) for origin in cors}, is_encrypted

    def is_shared(self, origin: str) -> bool:
        """Tell whether this is an origin of --cors."""
        return origin != "null" and _canonical(origin) in self._cors

    def may_use(self, origin: str, host: str) -> bool:
        """Tell whether a page of `origin` may send requests to the gateway, which it reaches as `host`.

        A proxy in front of the gateway may have ended TLS: the scheme has to be https where the gateway's own is.
        """
        if self.is_shared(origin):
            return True
        scheme, _, place = origin.partition("://")
        default = _DEFAULT_PORTS.get(scheme)
        if default is None or (self._is_encrypted and scheme != "https"):
            return False
        name, port = _split(place)
        known, known_port = _split(host)
        return bool(name) and name == known and (port or default) == (known_port or default)


def _canonical(origin: str) -> str:
    """Return an origin in lower case, without the port that its scheme implies."""
    scheme, _, place = origin.lower().partition("://")
    return origin.lower().removesuffix(f":{_DEFAULT_PORTS.get(scheme)}") if place else origin.lower()


def _split(header: str) -> tuple[str, int | None]:
    """Return the host of HOST:PORT in lower case, and the port if it has one; an empty host if it is not valid."""
    try:
        parts = urlsplit(f"//{header}")
        if parts.netloc != header or "@" in header or not parts.hostname:
            return "", None
        return parts.hostname.rstrip("."), parts.port
    except ValueError:
        return "", None
