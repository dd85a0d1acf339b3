"""Serve bundles as streaming text over gRPC.

    rill serve bundles/shakespeare
    rill serve bundles/a bundles/b --host 0.0.0.0 --port 50051 --device cuda
    rill serve bundles/
    rill serve --config rill.toml --check-config

When the server is ready it prints one line on stdout: rill: listening on HOST:PORT (models: ...; provider: ...). Logs
go to stderr. SIGHUP reads the bundles again: new ones are added, changed ones replaced, missing ones removed; streams
finish on the model they began with. SIGTERM or Ctrl-C drains: running streams may finish within --drain-seconds; a
second signal ends the server at once. With --engines N, send signals to the parent of the N processes.
"""

import os

# Before gRPC is imported: otherwise it writes a line about every handshake that fails, whoever causes it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from importlib import import_module

from rill.serve.config import options_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if the server could not start, 1 if it could not continue."""
    options = options_of(arguments, __doc__)
    # Only now: gRPC and ONNX Runtime take most of a second to load, and --help and wrong options need neither.
    status: int = import_module("rill.serve.operate.start").start(options)
    return status
