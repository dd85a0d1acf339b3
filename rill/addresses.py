"""Network addresses: HOST:PORT lists, and which of them are on this machine."""

import ipaddress

LAST_PORT = 65535


def split_addresses(target: str) -> list[str]:
    """Split "HOST:PORT[,HOST:PORT…]". Raises ValueError if an address is empty or its port is above 65535."""
    addresses = [address.strip() for address in target.split(",")]
    if not all(addresses):
        raise ValueError(f"target must be HOST:PORT or several separated by commas, not {target!r}")
    for address in addresses:
        port = address.rpartition(":")[2]
        if port.isdecimal() and int(port) > LAST_PORT and not address.startswith("unix"):  # gRPC takes it modulo 65536
            raise ValueError(f"target {address!r} has a port above {LAST_PORT}")
    return addresses


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_local(address: str) -> bool:
    """Tell whether a gRPC target is on this machine: HOST:PORT, with or without a scheme, or a Unix socket."""
    scheme, separator, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("dns", "ipv4", "ipv6") and separator:
        address = rest.rpartition("/")[2]
    return is_loopback(address.rpartition(":")[0] or address)
