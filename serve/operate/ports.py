"""The addresses that a server listens on. gRPC cannot say why it fails to bind one, so they are tried here first."""

import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace

from rill.addresses import abstract_name, is_loopback, join, socket_path, unix_address
from rill.listening import LOCALHOST, cause, family, is_usable, socket_address, usable_hosts
from rill.serve.config import ServerConfig
from rill.serve.errors import StartError

TRIES = 20  # to find a port that is free at all addresses
TURN_SECONDS = 10.0  # for the other processes to bind the port


def is_tcp(host: str) -> bool:
    """Tell whether an option for a host names one, and not a Unix socket. Raises ValueError."""
    return socket_path(host) is None and abstract_name(host) is None


def is_exposed(host: str) -> bool:
    """Tell whether other machines may reach a server that listens on `host`."""
    return is_tcp(host) and not is_loopback(host)


def require_free(config: ServerConfig) -> None:
    """Raise StartError, with the cause, if the server cannot listen where the options say, for HTTP too."""
    require_http_free(config)
    if (path := socket_path(config.host)) is not None:
        _check_socket_path(path)
    elif (name := abstract_name(config.host)) is not None:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            _attempt(f"cannot listen on {config.host}", lambda: probe.bind(f"\0{name}"))
    else:
        with reserved(config):
            pass


def require_http_free(config: ServerConfig) -> None:
    """Raise StartError, with the cause, if nothing can listen at --http-port."""
    if config.http_port is not None:
        with reserved(replace(config, host=config.http_host, port=config.http_port, engines=1), "--http-port"):
            pass


def own_address(config: ServerConfig, address: str) -> str:
    """Return where this machine reaches a server that listens on `address`, for clients in plain text."""
    if not is_tcp(config.host):
        return address
    host = _usable_hosts(config.host)[0]
    if host == "::":  # of IPv4, too; and a machine may have neither of the two
        host = next(filter(is_usable, LOCALHOST), host)
    return join({"0.0.0.0": "127.0.0.1"}.get(host, host), int(address.rpartition(":")[2]))


def bind(config: ServerConfig, add_port: Callable[[str], int]) -> str:
    """Bind what the options name, by calling `add_port` with gRPC's addresses; return the address for clients.

    Raises StartError, with the cause.
    """
    if not is_tcp(config.host):
        require_free(config)
        path = socket_path(config.host)
        return _bound(config.host if path is None else unix_address(path), add_port)
    hosts, port = _usable_hosts(config.host), config.port
    if config.engines == 1:  # otherwise the parent has reserved the port
        with reserved(config) as port:
            pass
    with _ipv6_kept_out(config, hosts, port):
        for host in hosts:
            _bound(join(host, port), add_port)
    return join(config.host, port)


@contextmanager
def reserved(config: ServerConfig, flag: str = "--port") -> Iterator[int]:
    """Hold the port, so that only this user's processes that share it can listen on it; port 0 takes a free one.

    `flag` names the port. Raises StartError, with the cause, if it cannot be used.
    """
    hosts = _usable_hosts(config.host)
    for tries_left in reversed(range(TRIES)):
        with ExitStack() as stack:
            port = config.port
            try:
                for host in hosts:
                    port = _hold(stack, host, port)
            except OSError as error:
                if config.port == 0 and error.errno == errno.EADDRINUSE and tries_left:
                    continue  # it is free at the first address only
                where = join(config.host, config.port)
                raise StartError(f"cannot listen on {where}: {cause(error, port, flag)}") from None
            with _ipv6_kept_out(config, hosts, port):
                pass  # none of the processes will have to wait for it
            yield port
            return


def _bound(address: str, add_port: Callable[[str], int]) -> str:
    with suppress(RuntimeError):
        if add_port(address):
            return address
    raise StartError(f"cannot listen on {address}: another program has taken it just now; try again")


def _usable_hosts(host: str) -> list[str]:
    """Return the IP addresses of a host that are this machine's. Raises StartError if it has none."""
    try:
        return usable_hosts(host)
    except ValueError as error:
        raise StartError(f"cannot listen on {host}: {error}") from None


def _hold(stack: ExitStack, host: str, port: int) -> int:
    """Bind a socket that does not listen; return its port. Raises OSError."""
    keeper = stack.enter_context(socket.socket(family(host), socket.SOCK_STREAM))
    if host == "::":  # as gRPC does: all addresses, of IPv4 too
        keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Connections of a server that has ended do not matter.
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(socket_address(host, port))
    # Only after the bind, which thus fails if any process has the port, even one that would share it.
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    if hasattr(socket, "SO_REUSEPORT"):
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound: int = keeper.getsockname()[1]
    return bound


@contextmanager
def _ipv6_kept_out(config: ServerConfig, hosts: Sequence[str], port: int) -> Iterator[None]:
    """Make gRPC take 0.0.0.0 for all addresses of IPv4.

    It would take it for those of IPv6, too, and listen on [::], unless it finds the port in use there. Processes that
    share the port do this in turn: for a socket that shares its port, Linux no longer looks at all others once a like
    one was bound, until one is bound that does not share it, as here. Raises StartError if another program has the port
    at [::] and processes are to share it.
    """
    with ExitStack() as stack:
        if "0.0.0.0" in hosts:
            deadline = time.monotonic() + (TURN_SECONDS if config.engines > 1 else 0)
            while not _hold_ipv6(stack, port):
                if time.monotonic() >= deadline:
                    if config.engines > 1:
                        raise StartError(f"cannot listen on {join(config.host, port)}: [::]:{port} is in use")
                    break  # so gRPC will find it in use, too
                time.sleep(0.01)
        yield


def _hold_ipv6(stack: ExitStack, port: int) -> bool:
    """Bind a socket that does not listen at all addresses of IPv6; tell whether it is not in use there."""
    keeper = None
    try:
        keeper = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
        keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keeper.bind(("::", port))
    except OSError as error:
        if keeper:
            keeper.close()
        return error.errno != errno.EADDRINUSE  # otherwise there is no IPv6
    return True


def _check_socket_path(path: str) -> None:
    """Remove what a server that was killed left at `path`. Raises StartError if a Unix socket cannot be bound there."""
    where = f"cannot listen on {unix_address(path)}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe, suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"{where}: {path} exists and is not a socket; it is left as it is")
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _attempt(where, lambda: os.unlink(path))
        except OSError as error:
            raise StartError(f"{where}: {path} exists, and {cause(error)}") from None
        else:
            raise StartError(f"{where}: in use by a server that is running")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        _attempt(where, lambda: probe.bind(path))
        os.unlink(path)


def _attempt(where: str, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        raise StartError(f"{where}: {cause(error)}") from None
