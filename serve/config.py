"""The options of `rill serve`, each declared once: name, type, default, bounds and help.

They are read from flags, the environment and a file, in this order of precedence: `--max-streams 100` is
RILL_SERVE_MAX_STREAMS=100 in the environment, and max-streams = 100 in a TOML file (`--config`).
"""

import os
import re
import sys
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from configargparse import ArgumentParser, ConfigFileParser, ConfigFileParserException, RawDescriptionHelpFormatter

from rill.addresses import abstract_name, checked_host, checked_origin, socket_path
from rill.files import output_file
from rill.log_lines import LOG_FORMATS, report_error

ENVIRONMENT = "RILL_SERVE_"  # then the flag's name in capitals
COUNT = (0, 1_000_000)  # bounds
SECONDS = (0, float("inf"))


def _option(
    default: Any, help: str, bounds: tuple[float, float] | None = None, metavar: str | None = None, **more: Any
) -> Any:
    """Declare a field of ServerConfig; `bounds` are inclusive, but an infinite value is never valid."""
    return field(default=default, metadata={"help": help, "bounds": bounds, "metavar": metavar, "more": more})


@dataclass(frozen=True)
class ServerConfig:
    """A field is the flag of its name, with dashes for underscores; a field that is true by default is --no-NAME."""

    bundles: Sequence[str] = ()  # arguments and --bundle
    host: str = _option(
        "127.0.0.1",
        "address to listen on; 0.0.0.0 is all of IPv4, :: all of IPv6 and IPv4, unix:PATH a socket without --port",
    )
    port: int = _option(50051, "port to listen on; 0 takes a free one", (0, 65_535))
    http_port: int | None = _option(
        None,
        "open the server to HTTP, too, at http://HOST:PORT: OpenAI's completions, and a page in the browser (extra"
        " http); 0 takes a free port (default: no HTTP)",
        (0, 65_535),
        metavar="PORT",
    )
    http_host: str = _option("127.0.0.1", "address to listen on for HTTP")
    http_allowed_host: Sequence[str] = _option(
        (),
        "a name under which browsers may reach the server over HTTP, beside IP addresses, localhost and --http-host;"
        " may be repeated",
        metavar="NAME",
    )
    http_cors: Sequence[str] = _option(
        (),
        "an origin whose pages may use the server over HTTP, such as https://example.com; may be repeated",
        metavar="ORIGIN",
    )
    engines: int = _option(1, "processes on the port, each with these limits; for CPUs with many cores", (1, 1024))
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    threads: int = _option(1, "ONNX Runtime threads per model", (1, 1024))
    gpu_memory: int = _option(0, "MiB of GPU memory that ONNX Runtime may use for a graph; 0: no limit", COUNT)
    max_streams: int = _option(4096, "streams that a model runs at once", (1, 1_000_000))
    max_waiting: int = _option(1024, "calls that wait for a free stream, per model; more are refused", COUNT)
    max_prompt: int = _option(1_000_000, "characters of the longest prompt", (1, 100_000_000))
    max_chars: int = _option(0, "characters that one call may generate; 0: no limit", (0, 2**62 - 1))
    max_score_chars: int = _option(  # a gRPC message is smaller than 2^31 bytes
        16_000_000, "characters of the longest text that is scored", (1, 500_000_000)
    )
    max_streams_per_client: int = _option(0, "streams that one client may have at once; 0: no limit", COUNT)
    max_connections: int = _option(0, "connections at once; 0: no limit", COUNT)
    tls_cert: str = _option(
        "",
        "the server's certificate chain, PEM: listen with TLS; read again when it or its key changes",
        metavar="FILE",
    )
    tls_key: str = _option("", "the private key of --tls-cert, PEM", metavar="FILE")
    tls_client_ca: str = _option(
        "", "certificate authorities, PEM: clients must present a certificate that one of them issued", metavar="FILE"
    )
    auth_token_file: str = _option(
        "", "bearer tokens, one a line: calls must present one of them; read again when it changes", metavar="FILE"
    )
    reflection: bool = _option(True, "do not describe the service to callers (gRPC reflection)")
    resume_key_file: Sequence[str] = _option(
        (),
        "32 raw bytes: the key of resume tokens; may be repeated: the first encrypts, all decrypt (default: a new key"
        " for the server's lifetime)",
        metavar="FILE",
    )
    resume_ttl: float = _option(
        7 * 86_400.0, "seconds for which a resume token is valid; 0: forever", (0, 10_000_000_000)
    )
    round_milliseconds: float = _option(10.0, "longest duration of an engine round, approximately", SECONDS)
    drain_seconds: float = _option(10.0, "time that running streams have to finish when the server stops", SECONDS)
    keepalive_seconds: float = _option(
        30.0,
        "ping a client that has been silent for this long, and drop its connection if no answer arrives in the same"
        " time again",
        (1, 86_400),
    )
    stall_seconds: float = _option(300.0, "end a stream whose reader takes nothing for this long; 0: never", SECONDS)
    idle_seconds: float = _option(
        0.0, "end an Interact, with a resume token, of which nothing is asked for this long; 0: never", SECONDS
    )
    profile: Path | None = _option(  # noqa: RUF009  # a Path is immutable
        None, "write a time profile to FILE, as JSON, when the server stops", metavar="FILE"
    )
    metrics_port: int | None = _option(
        None,
        "serve Prometheus metrics at http://HOST:PORT/metrics, and /health and /ready; 0 takes a free port (default: no"
        " metrics)",
        (0, 65_535),
        metavar="PORT",
    )
    metrics_host: str = _option("127.0.0.1", "address of the metrics")
    log_format: str = _option("text", "format of the logs on stderr", choices=LOG_FORMATS)
    access_log: bool = _option(True, "do not log a line for each finished call")

    @property
    def round_seconds(self) -> float:
        """The longest duration of an engine round."""
        return self.round_milliseconds / 1000


@dataclass(frozen=True)
class Options:
    """The `config`, a table of the `sources` of its values, and whether to `check` it only."""

    config: ServerConfig
    check: bool
    sources: str


def options_of(arguments: Sequence[str] | None, about: str | None) -> Options:
    """Read the options. If they are not valid, print a sentence that says why and exit with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(about, arguments)
    environment = {name: value for name, value in os.environ.items() if not is_service_link(name, value)}
    values = vars(parser.parse_args(arguments, env_vars=environment))
    known = [action.env_var for action in parser._actions if getattr(action, "env_var", None)]
    for name in environment:
        if name.startswith(ENVIRONMENT) and name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "--help lists the options"
            parser.error(f"the environment variable {name} does not name an option; {hint}")
    check, _ = values.pop("check_config"), values.pop("config")
    values["bundles"] += values.pop("bundle")
    config = ServerConfig(**values)
    if fault := _fault(config):
        parser.error(fault)
    return Options(config, check, parser.format_values())


def is_service_link(name: str, value: str) -> bool:
    """Tell whether a variable is the address of a service: Kubernetes gives those of a namespace to all its programs.

    A service named rill-serve has RILL_SERVE_PORT=tcp://…, and one named rill-serve-metrics RILL_SERVE_METRICS_PORT.
    """
    return any(re.fullmatch(pattern, name) and re.fullmatch(form, value) for pattern, form in _SERVICE_LINKS)


_ADDRESS = r"(tcp|udp|sctp)://\S+"
_HOST = r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*|[^\s/]+\.[^\s/]+"
_SERVICE_LINKS = (  # names and values
    (r"\w+_SERVICE_HOST", _HOST),
    (r"\w+_SERVICE_PORT(_\w+)?", r"\d+"),
    (r"\w+_PORT", _ADDRESS),
    (r"\w+_PORT_\d+_(TCP|UDP|SCTP)", _ADDRESS),
    (r"\w+_PORT_\d+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    (r"\w+_PORT_\d+_(TCP|UDP|SCTP)_PORT", r"\d+"),
    (r"\w+_PORT_\d+_(TCP|UDP|SCTP)_ADDR", _HOST),
    (r"\w+_NAME", r"/\S+/\S+"),  # of Docker's links, as the addresses
)


class Toml(ConfigFileParser):  # type: ignore[misc]  # configargparse has no types
    """Keys are flags without their dashes; nothing is nested."""

    def parse(self, stream: TextIO) -> dict[str, Any]:
        """Return the values as configargparse wants them: text, or lists of text."""
        try:
            table = tomllib.loads(stream.read().removeprefix("\ufeff"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigFileParserException(f"not valid TOML: {error}") from None
        for key, value in table.items():
            if not isinstance(value, str | int | float | list):
                raise ConfigFileParserException(f"{key} is not a string, a number, a boolean or a list")
        return {key: _text(value) for key, value in table.items()}

    def get_syntax_description(self) -> str:
        """Return a sentence for the help."""
        return 'The file is TOML: max-streams = 100, no-reflection = true, resume-key-file = ["a", "b"].'


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Parser(ArgumentParser):  # type: ignore[misc]  # configargparse has no types
    """Reports errors in the format of the log."""

    arguments: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        _, is_unknown, flags = message.partition("unrecognized arguments: ")
        if is_unknown and (close := get_close_matches(flags.split("=")[0].split()[0], self._option_string_actions, 1)):
            message += f"; did you mean {close[0]}?"
        report_error(message, self.arguments, f"{self.format_usage()}{self.prog}: error: ")
        sys.exit(2)


def _parser(about: str | None, arguments: Sequence[str]) -> Any:
    parser = _Parser(
        prog="rill serve",
        usage="%(prog)s BUNDLE... [--FLAG VALUE...]    (--help lists the flags)",
        description=about,
        formatter_class=RawDescriptionHelpFormatter,
        config_file_parser_class=Toml,
        auto_env_var_prefix=ENVIRONMENT,
    )
    parser.arguments = arguments
    parser.add_argument(
        "bundles",
        nargs="*",
        metavar="BUNDLE",
        help="a bundle's folder, or a folder of bundles, which are served in order of name; the first is the default"
        " model",
    )
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="BUNDLE", help="another bundle; in a file, a list of them"
    )
    parser.add_argument(
        "--config",
        is_config_file=True,
        env_var=f"{ENVIRONMENT}CONFIG",
        metavar="FILE",
        help="read options from this TOML file; flags and environment take precedence",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="check that the server could start, without listening: exit status 0, or 2 and one sentence",
    )
    for option in fields(ServerConfig):
        if option.metadata:
            _add(parser, option)
    return parser


def _add(parser: Any, option: Any) -> None:
    """Add the flag of a field."""
    flag, default, about = option.name.replace("_", "-"), option.default, option.metadata["help"]
    kind, *_ = get_args(option.type) or (option.type,)  # of `int | None` and `Sequence[str]` too
    if kind is bool:
        parser.add_argument(f"--no-{flag}", dest=option.name, action="store_false", help=about)
        return
    how = {"metavar": option.metadata["metavar"], **option.metadata["more"]}
    if default == ():
        parser.add_argument(f"--{flag}", action="append", default=[], help=about, **how)
        return
    if default not in ("", None):
        about += " (default: %(default)s)"
    parser.add_argument(f"--{flag}", type=kind, default=default, help=about, **how)


def _fault_of_addresses(config: ServerConfig) -> str:
    """Return what is wrong with the addresses to listen on, empty if nothing."""
    listeners = [
        ("--port", config.port, config.host),
        ("--http-port", config.http_port, config.http_host),
        ("--metrics-port", config.metrics_port, config.metrics_host),
    ]
    for (flag, port, host), (other, other_port, other_host) in combinations(listeners, 2):
        if port and port == other_port and (host == other_host or {host, other_host} & {"0.0.0.0", "::"}):
            return f"{flag} and {other} must differ, and are both {port}"
    for flag, host in ((port_flag.replace("port", "host"), host) for port_flag, _, host in listeners):
        try:
            if flag != "--host" or (socket_path(host) is None and abstract_name(host) is None):
                checked_host(host)
            elif config.engines > 1:
                return f"--engines needs a port, which processes can share: {flag} {host} is a Unix socket"
        except ValueError as error:
            return f"{flag} {error}"
    return ""


def _fault_of_names(config: ServerConfig) -> str:
    """Return what is wrong with the names for HTTP, empty if nothing."""
    for flag, names, check in (
        ("--http-allowed-host", config.http_allowed_host, checked_host),
        ("--http-cors", config.http_cors, checked_origin),
    ):
        for name in names:
            try:
                check(name)
            except ValueError as error:
                return f"{flag} {error}"
    return ""


def _fault(config: ServerConfig) -> str:
    """Return what is wrong with the values, empty if nothing."""
    for option in fields(config):
        value, bounds = getattr(config, option.name), option.metadata.get("bounds")
        if bounds and value is not None and not (bounds[0] <= value <= bounds[1] and value < float("inf")):
            low, high = bounds
            wanted = f"from {low} to {high}" if high < float("inf") else f"a finite number of at least {low}"
            return f"--{option.name.replace('_', '-')} must be {wanted}, not {value}"
    if fault := _fault_of_addresses(config) or _fault_of_names(config):
        return fault
    if config.profile:
        try:
            output_file(str(config.profile))
        except ArgumentTypeError as error:
            return f"--profile: {error}"
    if config.engines > 1 and config.profile:
        return "--profile is for a single process: remove --engines"
    if config.engines > 1 and sys.platform != "linux":
        return "--engines needs Linux: elsewhere processes cannot share a port"
    return "" if config.bundles else "give at least one BUNDLE to serve"
