"""Start the server as its options say: in this process, in several, or only checked."""

import asyncio
from collections.abc import Sequence

from rill.logs import finish_logging, start_logging, stderr
from rill.serve.config import Options, ServerConfig
from rill.serve.errors import BrokenEngineError, StartError
from rill.serve.observe.metrics import DROPPED_LINES
from rill.serve.observe.page import Readiness, page
from rill.serve.operate.http_gateway import require_usable
from rill.serve.operate.ports import is_exposed
from rill.serve.operate.server import announce, check, log, serve
from rill.serve.operate.supervisor import serve_together


def start(options: Options, messages: Sequence[str] = ()) -> int:
    """Serve until a signal; returns the exit status: 2 if the server could not start, 1 if it could not continue.

    `messages` are what libraries have written so far.
    """
    config = options.config
    start_logging(config.log_format, config.access_log, stderr(), on_dropped=DROPPED_LINES.inc)
    for message in messages:
        log.warning("%s", message)
    hosts = [("", config.host)] if config.http_port is None else [("", config.host), ("for HTTP ", config.http_host)]
    for what, host in hosts:
        if is_exposed(host) and (exposure := exposure_of(config)):
            log.warning("listening %son %s %s", what, host, exposure)
    try:
        require_usable(config)
        if options.check:
            found = asyncio.run(check(config))
            announce(f"{options.sources}\n{found}")
            return 0
        if config.engines > 1:
            return asyncio.run(serve_together(config))
        readiness = Readiness()
        with page(config.metrics_host, config.metrics_port, lambda: readiness.obstacle):
            asyncio.run(serve(config, readiness))
    except (StartError, BrokenEngineError) as error:
        finish_logging(str(error))
        return 2 if isinstance(error, StartError) else 1
    except KeyboardInterrupt:  # while loading; later it drains
        return 130
    return 0


def exposure_of(config: ServerConfig) -> str:
    """Return what protection a server that others can reach lacks, and what follows from it; empty if none."""
    is_encrypted = bool(config.tls_cert)
    authenticates = bool(config.auth_token_file or config.tls_client_ca)
    if is_encrypted and authenticates:
        return ""
    if is_encrypted:
        return "without credentials: anyone who can reach it can use it (--auth-token-file, --tls-client-ca)"
    if authenticates:
        return "without encryption: texts and bearer tokens can be read in transit (--tls-cert, --tls-key)"
    return "without encryption or credentials: anyone who can reach it can use it"
