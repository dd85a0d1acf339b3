"""The options of `rill http`, each declared once."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rill.client.security import PLAIN, Security
from rill.client.security_flags import add_security, security_of

DEFAULT_TARGET = "127.0.0.1:50051"


@dataclass(frozen=True)
class GatewayConfig:
    """What the gateway does, and for whom.

    target: the servers, HOST:PORT[,HOST:PORT…]; `security` is about the connections to them.
    retry_seconds: how long a request that has received nothing looks for a server, each at least once.
    end_with_stdin: drain when standard input ends: a parent that holds the other end of a pipe stops its gateway so,
    and leaves none behind however it ends itself.
    """

    target: str = DEFAULT_TARGET
    host: str = "127.0.0.1"
    port: int = 8080
    security: Security = PLAIN
    retry_seconds: float = 1.0
    end_with_stdin: bool = False


def config_of(arguments: Sequence[str] | None, about: str | None) -> GatewayConfig:
    """Read the flags. If they are not valid, print a sentence that says why and exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="rill http", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        metavar="HOST:PORT[,HOST:PORT…]",
        help="the server, or several (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8080, help="port to listen on; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--retry-seconds",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how long a request looks for a server before its first event; each is asked once (default: %(default)s)",
    )
    parser.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="drain when standard input ends, for a program that starts this one",
    )
    add_security(parser)
    options = parser.parse_args(arguments)
    try:
        security = security_of(options)
    except ValueError as error:
        parser.error(str(error))
    return GatewayConfig(
        options.target, options.host, options.port, security, options.retry_seconds, options.end_with_stdin
    )
