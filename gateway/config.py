"""The options of `rill http`, each declared once: name, type, default, bounds and help."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

from rill.addresses import abstract_name, checked_host, checked_origin, join, socket_path, split_addresses
from rill.client.security_flags import add_security
from rill.log_lines import LOG_FORMATS

LONGEST_HEAD = 32 * 1024  # bytes of a request line and its headers
COUNT = (1, 1_000_000)  # bounds
SECONDS = (0, float("inf"))


class StartError(Exception):
    """The gateway cannot start; the message is a sentence for the user."""


def _option(
    default: Any, help: str, bounds: tuple[float, float] | None = None, metavar: str | None = None, **more: Any
) -> Any:
    """Declare a field of GatewayConfig; `bounds` are inclusive, but an infinite value is never valid."""
    return field(default=default, metadata={"help": help, "bounds": bounds, "metavar": metavar, "more": more})


@dataclass(frozen=True)
class GatewayConfig:
    """A field is the flag of its name, with dashes for underscores; one that is true by default is --no-NAME.

    `connection` holds the flags about the connections to --target.
    """

    connection: argparse.Namespace = field(default_factory=argparse.Namespace)
    target: str = _option("127.0.0.1:50051", "the server, or several", metavar="HOST:PORT[,HOST:PORT…]")
    spread: bool = _option(
        False,
        "let requests take turns at the servers of --target, which then need one resume key (default: the first one"
        " that answers)",
    )
    retry_seconds: float = _option(
        1.0,
        "how long a request looks for a server before its first event; each is asked at least once",
        SECONDS,
        "SECONDS",
    )
    host: str = _option(
        "127.0.0.1", "address to listen on; 0.0.0.0 is all of IPv4, :: all of IPv6 and IPv4", metavar="HOST"
    )
    port: int = _option(8080, "port to listen on; 0 takes a free one", (0, 65_535), "PORT")
    http_tls_cert: str = _option(
        "",
        "the gateway's certificate chain, PEM: listen with TLS; read again when it or its key changes",
        metavar="FILE",
    )
    http_tls_key: str = _option("", "the private key of --http-tls-cert, PEM", metavar="FILE")
    http_tls_client_ca: str = _option(
        "", "certificate authorities, PEM: clients must present a certificate that one of them issued", metavar="FILE"
    )
    allowed_host: Sequence[str] = _option(
        (),
        "a name under which browsers may reach the gateway, beside IP addresses, localhost and --host; may be repeated",
        metavar="NAME",
    )
    cors: Sequence[str] = _option(
        (),
        "an origin whose pages may use the gateway, such as https://example.com; may be repeated (default: only the"
        " gateway's own page)",
        metavar="ORIGIN",
    )
    max_body: int = _option(8 * 2**20, "bytes of the largest request body or WebSocket frame", (1024, 2**30), "BYTES")
    max_connections: int = _option(
        4096, "connections at once; for a new one, the one that has been idle the longest is closed", COUNT, "N"
    )
    read_seconds: float = _option(
        30.0, "time in which the head of a request must arrive, and then its body", (0.1, 86_400), "SECONDS"
    )
    idle_seconds: float = _option(
        75.0, "close a connection that has had no request for this long", (0.1, 86_400), "SECONDS"
    )
    stall_seconds: float = _option(
        300.0, "close a connection whose reader takes nothing for this long", (0.1, 86_400), "SECONDS"
    )
    drain_seconds: float = _option(
        10.0, "time that running requests have to finish when the gateway stops", SECONDS, "SECONDS"
    )
    metrics: bool = _option(True, "do not serve Prometheus metrics at /metrics")
    log_format: str = _option("text", "format of the logs on stderr", choices=LOG_FORMATS)
    access_log: bool = _option(True, "do not log a line for each finished request")
    end_with_stdin: bool = _option(
        False, "stop, as by SIGTERM, when standard input ends: with the program that writes it"
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with status 2, after a sentence that names the flag that may be meant."""
        _, is_unknown, flags = message.partition("unrecognized arguments: ")
        if is_unknown and (close := get_close_matches(flags.split("=")[0].split()[0], self._option_string_actions, 1)):
            message += f"; did you mean {close[0]}?"
        super().error(message)


def config_of(arguments: Sequence[str] | None, about: str | None) -> GatewayConfig:
    """Read the flags. If they are not valid, print a sentence that says why and exit with status 2."""
    parser = _Parser(
        prog="rill http",
        usage="%(prog)s [--target HOST:PORT[,HOST:PORT…]] [--FLAG VALUE...]    (--help lists the flags)",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = [option.name for option in fields(GatewayConfig) if option.metadata]
    for option in fields(GatewayConfig):
        if option.metadata:
            _add(parser, option)
    add_security(parser)
    options = parser.parse_args(arguments)
    config = GatewayConfig(connection=options, **{name: getattr(options, name) for name in names})
    if fault := _fault(config):
        parser.error(fault)
    return config


def _add(parser: argparse.ArgumentParser, option: Any) -> None:
    """Add the flag of a field."""
    flag, default, about = option.name.replace("_", "-"), option.default, option.metadata["help"]
    kind, *_ = get_args(option.type) or (option.type,)  # of `Sequence[str]` too
    if kind is bool:
        name, action = (f"--no-{flag}", "store_false") if default else (f"--{flag}", "store_true")
        parser.add_argument(name, dest=option.name, action=action, help=about)
        return
    how = {"metavar": option.metadata["metavar"], **option.metadata["more"]}
    if default == ():
        parser.add_argument(f"--{flag}", action="append", default=[], help=about, **how)
        return
    if default != "":
        about += " (default: %(default)s)"
    parser.add_argument(f"--{flag}", type=kind, default=default, help=about, **how)


def _fault(config: GatewayConfig) -> str:
    """Return what is wrong with the values, empty if nothing."""
    for option in fields(config):
        value, bounds = getattr(config, option.name), option.metadata.get("bounds")
        if bounds and not (bounds[0] <= value <= bounds[1] and value < float("inf")):
            low, high = bounds
            wanted = f"from {low} to {high}" if high < float("inf") else f"a finite number of at least {low}"
            return f"--{option.name.replace('_', '-')} must be {wanted}, not {value}"
    if bool(config.http_tls_cert) != bool(config.http_tls_key):
        return "--http-tls-cert and --http-tls-key go together: a certificate chain and its private key, both in PEM"
    if config.http_tls_client_ca and not config.http_tls_cert:
        return "--http-tls-client-ca needs --http-tls-cert and --http-tls-key: client certificates are part of TLS"
    return _fault_of_addresses(config) or _fault_of_names(config)


def _fault_of_addresses(config: GatewayConfig) -> str:
    """Return what is wrong with --target and --host, empty if nothing."""
    try:
        addresses = split_addresses(config.target)
    except ValueError as error:
        return f"--{error}"
    try:
        if socket_path(config.host) is not None or abstract_name(config.host) is not None:
            return (
                f"--host {config.host} is a Unix socket: the gateway listens on a port; give a host name or an address"
            )
        host = checked_host(config.host)
    except ValueError as error:
        return f"--host {error}"
    if config.port and join(host, config.port) in addresses:
        return f"--target {join(host, config.port)} is the gateway's own address: give that of a server"
    return ""


def _fault_of_names(config: GatewayConfig) -> str:
    """Return what is wrong with --allowed-host and --cors, empty if nothing."""
    for name in config.allowed_host:
        try:
            checked_host(name)
        except ValueError as error:
            return f"--allowed-host {error}"
    for origin in config.cors:
        try:
            checked_origin(origin)
        except ValueError as error:
            return f"--cors {error}"
    return ""
