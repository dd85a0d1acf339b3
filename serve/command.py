"""Serve bundles as streaming text over gRPC.

    python -m rill.serve bundles/shakespeare
    python -m rill.serve bundles/a bundles/b --host 0.0.0.0 --port 50051 --device cuda
    python -m rill.serve bundles/
    python -m rill.serve --config rill.toml --check-config

When ready it prints one line on stdout: rill: listening on HOST:PORT (models: ...; provider: ...). Logs go to stderr.
SIGHUP reads the bundles again: new ones are added, changed ones replaced, vanished ones removed; streams finish on the
model they began with. SIGTERM or Ctrl-C drains: live streams may finish for --drain-seconds; a second signal ends at
once. With --engines N, signals go to the parent of the N processes.
"""

import os

# Before gRPC is imported, or it writes a line about every handshake that fails, whoever makes it fail.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import asyncio
import sys

from rill.addresses import is_loopback
from rill.serve.config import options_of
from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.logs import start_logging, stderr
from rill.serve.observe.metrics import page
from rill.serve.operate.server import Settings, check, log, serve
from rill.serve.operate.supervisor import serve_together


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if the server could not start, 1 if it could not go on."""
    options = options_of(arguments, __doc__)
    settings = options.settings
    writer = start_logging(settings.log_format, settings.access_log, stderr())
    if not is_loopback(settings.host) and (lack := _lack(settings)):
        log.warning("listening on %s %s", settings.host, lack)
    try:
        if options.check:
            found = asyncio.run(check(settings))
            print(f"{options.sources}\n{found}")
            return 0
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
