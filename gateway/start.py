"""Start the gateway: its log, its life, its exit status."""

import asyncio
import sys

if sys.platform == "win32":
    from asyncio import new_event_loop
else:  # a new request waits half as long for its turn among many streams
    from uvloop import new_event_loop

from rill.client.security_files import security_of
from rill.gateway.config import GatewayConfig, StartError
from rill.gateway.metrics import DROPPED_LINES
from rill.gateway.server import serve
from rill.logs import finish_logging, start_logging, stderr

GIL_SECONDS = 0.0005  # for which gRPC's thread waits at most to hand over an event; by default ten times as long


def start(config: GatewayConfig) -> int:
    """Serve until a signal; returns the exit status: 2 if the gateway could not start."""
    fields = {"part": "gateway"} if config.end_with_stdin else {}  # on the stderr of the program that starts it
    sys.setswitchinterval(GIL_SECONDS)
    start_logging(config.log_format, config.access_log, stderr(), fields, DROPPED_LINES.inc)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(config, security_of(config.connection)))
    except (StartError, ValueError) as error:
        finish_logging(str(error))
        return 2
    return 0
