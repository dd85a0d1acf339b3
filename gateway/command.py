"""Open the servers at --target to HTTP: OpenAI's completions, a WebSocket, and a page in the browser.

    rill http --target 127.0.0.1:50051
    rill http --target 10.0.0.5:50051,10.0.0.6:50051 --host 0.0.0.0 --port 8080

When the gateway listens it prints one line on stdout: rill: http on http://HOST:PORT. Logs go to stderr. SIGTERM or
Ctrl-C drains: /ready answers 503, live streams end with a resume token, other requests may finish within
--drain-seconds; a second signal ends the gateway at once.
"""

import os
from importlib import import_module

from rill.gateway.config import config_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if the gateway could not start."""
    config = config_of(arguments, __doc__)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC is imported, which writes about connections
    # Before prometheus_client is imported: it would keep our figures in files, where another program keeps its own.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.pop("prometheus_multiproc_dir", None)
    # Only now: Starlette and gRPC take a while to load, and --help and wrong options need neither.
    start = import_module("rill.gateway.start")
    status: int = start.start(config)
    return status
