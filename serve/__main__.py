"""Serve bundles as streaming text over gRPC.

    python -m serve bundles/shakespeare
    python -m serve bundles/a bundles/b --host 0.0.0.0 --port 50051 --device cuda
    python -m serve bundles/

When ready it prints one line on stdout: rill: listening on HOST:PORT (models: ...; provider: ...). Logs go to stderr.
SIGHUP reads the bundles again: new ones are added, changed ones replaced, vanished ones removed; streams finish on the
model they began with. SIGTERM or Ctrl-C drains: live streams may finish for --drain-seconds; a second signal ends at
once. With --engines N, signals go to the parent of the N processes.
"""

import os

# Before gRPC is imported, or it writes a line about every handshake that fails, whoever makes it fail.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import argparse
import asyncio
import sys
from pathlib import Path

from serve.errors import BrokenEngineError, StartError
from serve.logs import FORMATS, start_logging, stderr
from serve.metrics import page
from serve.security import is_loopback
from serve.server import Settings, log, serve
from serve.workers import serve_together

LONGEST_TTL = 1e10  # seconds: three centuries


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if the server could not start, 1 if it could not go on."""
    settings = _settings(arguments)
    writer = start_logging(settings.log_format, settings.access_log, stderr())
    if not is_loopback(settings.host) and (lack := _lack(settings)):
        log.warning("listening on %s %s", settings.host, lack)
    try:
        if settings.engines > 1:
            return asyncio.run(serve_together(settings))
        with page(settings.metrics_host, settings.metrics_port):
            asyncio.run(serve(settings))
    except (StartError, BrokenEngineError) as error:
        writer.stop()  # the error is the last line
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, StartError) else 1
    except KeyboardInterrupt:  # while loading; later it drains
        return 130
    return 0


def _settings(arguments: list[str] | None) -> Settings:
    defaults = Settings(bundles=())
    parser = argparse.ArgumentParser(
        prog="python -m serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def flag(name: str, kind: type, default: object, text: str) -> None:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")

    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE",
        help="a bundle's folder, or one with bundles in it, which are taken by name; the first is the default model",
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
    options = vars(parser.parse_args(arguments))
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
    return Settings(round_seconds=options.pop("round_milliseconds") / 1000, **options)


def _lack(settings: Settings) -> str:
    """What is missing on a server that others can reach, and what follows from it; empty if nothing is."""
    is_encrypted = bool(settings.tls_cert)
    knows_its_callers = bool(settings.auth_token_file or settings.tls_client_ca)
    if is_encrypted and knows_its_callers:
        return ""
    if is_encrypted:
        return "without credentials: anybody who can reach it can use it (--auth-token-file, --tls-client-ca)"
    if knows_its_callers:
        return "without encryption: texts and bearer tokens can be read on their way (--tls-cert, --tls-key)"
    return "without encryption or credentials: anybody who can reach it can use it"


if __name__ == "__main__":
    sys.exit(main())
