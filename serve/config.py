"""What `python -m rill.serve` can be told: by flags, by the environment, and by a file, in this order.

`--max-streams 100` is RILL_SERVE_MAX_STREAMS=100 in the environment, and max-streams = 100 in a TOML file (`--config`).
"""

import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from configargparse import ArgumentParser, ConfigFileParser, ConfigFileParserException, RawDescriptionHelpFormatter

from rill.serve.observe.logs import FORMATS
from rill.serve.operate.server import Settings

ENVIRONMENT = "RILL_SERVE_"  # and a flag's name in capitals
LONGEST_TTL = 1e10  # seconds: three centuries


@dataclass(frozen=True)
class Options:
    """`settings`, and a table of where they come from; `check`: no more than see whether they can be served."""

    settings: Settings
    check: bool
    sources: str


class Toml(ConfigFileParser):  # type: ignore[misc]  # configargparse has no types
    """Keys are flags without their dashes; nothing is nested."""

    def parse(self, stream: TextIO) -> dict[str, Any]:
        """What configargparse wants: text, or lists of text."""
        try:
            table = tomllib.loads(stream.read())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigFileParserException(f"it is no TOML: {error}") from None
        for key, value in table.items():
            if not isinstance(value, str | int | float | list):
                raise ConfigFileParserException(f"{key} is neither text nor a number nor a list nor true or false")
        return {key: _text(value) for key, value in table.items()}

    def get_syntax_description(self) -> str:
        """For the help."""
        return 'The file has TOML: max-streams = 100, no-reflection = true, resume-key-file = ["a", "b"].'


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def options_of(arguments: Sequence[str] | None, about: str | None) -> Options:
    """Ends the program with a line that says why, if they make no sense."""
    parser = _parser(about)
    options = vars(parser.parse_args(arguments))
    known = {action.env_var for action in parser._actions if getattr(action, "env_var", None)}
    for name in os.environ:
        if name.startswith(ENVIRONMENT) and name not in known:
            parser.error(f"{name} is in the environment, and there is no such flag; --help lists them")
    _require_sense(parser, options)
    check, _ = options.pop("check_config"), options.pop("config")
    options["bundles"] += options.pop("bundle")
    if not options["bundles"]:
        parser.error("which BUNDLE is to be served?")
    seconds = options.pop("round_milliseconds") / 1000
    return Options(Settings(round_seconds=seconds, **options), check, parser.format_values())


def _parser(about: str | None) -> Any:
    defaults = Settings(bundles=())
    parser = ArgumentParser(
        prog="python -m rill.serve",
        usage="%(prog)s BUNDLE... [--FLAG VALUE...]    (--help lists the flags)",
        description=about,
        formatter_class=RawDescriptionHelpFormatter,
        config_file_parser_class=Toml,
        auto_env_var_prefix=ENVIRONMENT,
    )

    def flag(name: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")

    parser.add_argument(
        "bundles",
        nargs="*",
        metavar="BUNDLE",
        help="a bundle's folder, or one with bundles in it, which are taken by name; the first is the default model",
    )
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="BUNDLE", help="another one; in a file, a list of them"
    )
    parser.add_argument(
        "--config",
        is_config_file=True,
        env_var=f"{ENVIRONMENT}CONFIG",
        metavar="FILE",
        help="read what no flag says from there",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="see whether all of this can be served, without listening: exit status 0, or 2 and one sentence",
    )
    flag("host", str, defaults.host, "address to listen on")
    flag("port", int, defaults.port, "port to listen on; 0 takes a free one")
    flag("engines", int, defaults.engines, "processes on the port, each with these limits; for CPUs with many cores")
    flag("device", str, defaults.device, "auto, cpu, cuda or cuda:N")
    flag("threads", int, defaults.threads, "ONNX Runtime threads per model")
    flag("gpu-memory", int, defaults.gpu_memory, "MiB of GPU memory that ONNX Runtime may use for a graph; 0: no limit")
    flag("max-streams", int, defaults.max_streams, "streams that a model runs at once")
    flag("max-waiting", int, defaults.max_waiting, "calls that wait for a free stream, per model; more are refused")
    flag("max-prompt", int, defaults.max_prompt, "characters of the longest prompt")
    flag("max-chars", int, defaults.max_chars, "characters that one call may generate; 0: no limit")
    flag("max-score-chars", int, defaults.max_score_chars, "characters of the longest text that is scored")
    flag("max-streams-per-client", int, defaults.max_streams_per_client, "streams of one client at once; 0: no limit")
    flag("max-connections", int, defaults.max_connections, "connections at once; 0: no limit")
    for name, text in [
        ("tls-cert", "the server's certificate chain, PEM: listen with TLS; read again when it changes, like its key"),
        ("tls-key", "the private key of --tls-cert, PEM"),
        ("tls-client-ca", "authorities, PEM: clients must have a certificate of one of them"),
        ("auth-token-file", "bearer tokens, one a line: calls must have one of them; read again when it changes"),
    ]:
        parser.add_argument(f"--{name}", default="", metavar="FILE", help=text)
    parser.add_argument(
        "--no-reflection", dest="reflection", action="store_false", help="do not describe the service to its callers"
    )
    parser.add_argument(
        "--resume-key-file",
        action="append",
        default=[],
        metavar="FILE",
        help="32 raw bytes: the key of resume tokens; may be repeated: the first encrypts, all decrypt (default: a new"
        " key for the server's lifetime)",
    )
    flag("resume-ttl", float, defaults.resume_ttl, "seconds that a resume token is good for; 0: for ever")
    flag("round-milliseconds", float, 1000 * defaults.round_seconds, "how long an engine round lasts at most, about")
    flag("drain-seconds", float, defaults.drain_seconds, "how long live streams may finish when the server is to stop")
    flag(
        "keepalive-seconds",
        float,
        defaults.keepalive_seconds,
        "a client that is quiet for so long is asked, and gone if it does not answer within as long again",
    )
    flag(
        "stall-seconds",
        float,
        defaults.stall_seconds,
        "a stream whose reader takes nothing for so long is ended; 0: never",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write where the time went there, as JSON, when the server stops"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="show Prometheus metrics at http://HOST:PORT/metrics; 0 takes a free port (default: no metrics)",
    )
    flag("metrics-host", str, defaults.metrics_host, "address of the metrics")
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default=defaults.log_format,
        help="of the logs on stderr (default: %(default)s)",
    )
    parser.add_argument(
        "--no-access-log", dest="access_log", action="store_false", help="do not log a line for each call that is over"
    )
    return parser


def _require_sense(parser: Any, options: dict[str, Any]) -> None:
    for name, least, most in [
        ("port", 0, 65_535),
        ("engines", 1, 1024),
        ("metrics_port", 0, 65_535),
        ("threads", 1, 1024),
        ("gpu_memory", 0, 1_000_000),
        ("max_streams", 1, 1_000_000),
        ("max_waiting", 0, 1_000_000),
        ("max_streams_per_client", 0, 1_000_000),
        ("max_connections", 0, 1_000_000),
        ("max_prompt", 1, 100_000_000),
        ("max_chars", 0, 2**62 - 1),
        ("max_score_chars", 1, 500_000_000),  # gRPC has no messages of 2^31 bytes
    ]:
        if options[name] is not None and not least <= options[name] <= most:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to {most}, not {options[name]}")
    for name in ("round_milliseconds", "drain_seconds", "stall_seconds", "resume_ttl"):
        if not 0 <= options[name] < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be a finite number of at least 0, not {options[name]}")
    if not 1 <= options["keepalive_seconds"] <= 86_400:
        parser.error(f"--keepalive-seconds must be from 1 to 86400, not {options['keepalive_seconds']}")
    if options["resume_ttl"] > LONGEST_TTL:
        parser.error(f"--resume-ttl must be at most {LONGEST_TTL:g} seconds; 0 is for ever")
    if options["profile"] and not options["profile"].parent.is_dir():
        parser.error(f"--profile {options['profile']}: there is no folder {options['profile'].parent}")
    if options["engines"] > 1 and options["profile"]:
        parser.error("--profile is of one process: leave --engines out")
    if options["engines"] > 1 and sys.platform != "linux":
        parser.error("--engines needs Linux: elsewhere processes cannot share a port")
