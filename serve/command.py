"""Serve bundles as streaming text over gRPC.

    rill serve bundles/shakespeare
    rill serve bundles/a bundles/b --host 0.0.0.0 --port 50051 --device cuda
    rill serve bundles/
    rill serve --config rill.toml --check-config

When the server is ready it prints one line on stdout: rill: listening on HOST:PORT (models: ...; provider: ...). Logs
go to stderr. SIGHUP reads the bundles again: new ones are added, changed ones replaced, missing ones removed; streams
finish on the model they began with. SIGTERM or Ctrl-C drains: running streams may finish within --drain-seconds; a
second signal ends the server at once. With --engines N, send signals to the parent of the N processes. A process of
its own compiles what texts must match; it starts with the first such call, and ends with the server.
"""

import os

# Before prometheus_client is imported: it would keep our figures in files, where another program keeps its own.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
os.environ.pop("prometheus_multiproc_dir", None)

from contextlib import nullcontext
from importlib import import_module

from rill.serve.config import options_of
from rill.streams import captured_stderr


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if the server could not start, 1 if it could not continue."""
    options = options_of(arguments, __doc__)
    is_json = options.config.log_format == "json"
    # Before gRPC is imported: otherwise it writes a line about every handshake that fails, whoever causes it. Its lines
    # are not JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE" if is_json else "ERROR")
    messages: list[str] = []
    # Only now: gRPC and ONNX Runtime take most of a second to load, and --help and wrong options need neither.
    with captured_stderr(messages) if is_json else nullcontext():
        module = import_module("rill.serve.operate.start")
    status: int = module.start(options, messages)
    return status
