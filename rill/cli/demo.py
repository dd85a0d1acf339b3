"""Serve a small model that ships with Rill, over gRPC and HTTP, and say what to try.

    rill demo
    rill demo --port 0 --http-port 0

The model writes like Shakespeare's plays, not always sensibly: it has 192 units and was trained for a few minutes.
Ctrl-C ends it.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rill.addresses import DEFAULT_PORT, checked_host, split_addresses
from rill.cli.local_server import READY, START_SECONDS, StartError, sigterm_unwinds
from rill.demo import NAME, bundle_folder
from rill.processes import python_command, python_environment
from rill.programs import DISTRIBUTION

HTTP_PORT = 8080
NEEDED = ("onnxruntime", "configargparse", "starlette", "uvicorn")  # one package of each that the extras bring
HTTP = re.compile(r"rill: http on (https?)://(\S+)")
DRAIN_SECONDS = 1.2  # of which streams get the last 0.2 s: it ends while its user waits
LAST_SECONDS = 10.0  # to end, at most
ABOUT_NOTHING = re.compile(r"\S+ \S+ INFO ")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on, for both (default: %(default)s, this machine only)"
    )
    for flag, port, what in [("--port", DEFAULT_PORT, "gRPC"), ("--http-port", HTTP_PORT, "HTTP")]:
        parser.add_argument(
            flag,
            type=int,
            default=port,
            metavar="PORT",
            help=f"port to listen on for {what}; 0 takes a free one (default: %(default)s)",
        )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises StartError."""
    for package in NEEDED:
        if find_spec(package) is None:
            raise StartError(
                f"rill demo needs the package {package!r}; install it with: pip install '{DISTRIBUTION}[serve,http]'"
            )
    try:
        checked_host(options.host)
    except ValueError as error:
        raise StartError(f"--host {error}") from None
    flags = ("--host", options.host, "--port", options.port, "--http-host", options.host)
    with sigterm_unwinds(), _server(*map(str, flags), "--http-port", str(options.http_port)) as server:
        text = _what_to_try(*server.addresses())
        try:
            print(text, flush=True)
            return server.wait()
        except (KeyboardInterrupt, SystemExit):
            return server.end()


class _Server:
    """The server's process, and a thread that passes on what it logs, except what goes without saying."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._last: deque[str] = deque(maxlen=1)
        self._is_ready = False
        self._log = threading.Thread(target=self._pass_on, daemon=True)
        self._log.start()

    def addresses(self) -> tuple[str, str]:
        """Return HOST:PORT of gRPC and the URL of HTTP, as clients of this machine call them. Raises StartError."""
        assert self._process.stdout
        timer = threading.Timer(START_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        lines = [self._process.stdout.readline() for _ in range(2)]
        timer.cancel()
        grpc, http = READY.match(lines[0]), HTTP.match(lines[1])
        if not (grpc and http):
            self._process.wait()
            self._log.join()
            raise StartError(self._reason() or f"the server did not listen within {START_SECONDS:.0f} s")
        self._is_ready = True
        (target,), (place,) = split_addresses(grpc[1]), split_addresses(http[2])
        return target, f"{http[1]}://{place}"

    def wait(self) -> int:
        """Wait until it ends by itself, and say so; returns 1."""
        status = self._process.wait()
        self._log.join()
        print(f"error: the server ended with status {status}", file=sys.stderr)
        return 1

    def end(self) -> int:
        """Let it drain; returns 0. It is killed if that takes too long."""
        self._process.terminate()
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return 0

    def _reason(self) -> str:
        return self._last[0].rpartition("error: ")[2].strip() if self._last else ""

    def _pass_on(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._last.append(line)
            if not ABOUT_NOTHING.match(line) and (self._is_ready or " WARNING " in line):
                print(line, end="", file=sys.stderr)


@contextmanager
def _server(*flags: str) -> Iterator[_Server]:
    """Start a server of the bundle with these flags, which ends with this process, however that ends."""
    quiet = ("--device", "cpu", "--no-access-log", "--drain-seconds", str(DRAIN_SECONDS))
    with subprocess.Popen(
        python_command("rill.cli.local_server", str(bundle_folder()), *flags, *quiet),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        # The user's settings for servers are about servers of their own.
        env={name: value for name, value in python_environment().items() if not name.startswith("RILL_SERVE_")},
        start_new_session=True,  # Ctrl-C is for this process
    ) as process:
        try:
            yield _Server(process)
        finally:
            process.kill()


def _what_to_try(target: str, url: str) -> str:
    rill = "rill" if shutil.which("rill") else f"{shlex.quote(sys.executable)} -m rill"
    request = f'{{"model": "{NAME}", "prompt": "ROMEO:", "max_tokens": 400, "temperature": 0.5, "stream": true}}'
    return f"""rill: a small model of Shakespeare's plays is ready. Try, in another terminal or in a browser:

  curl -N {shlex.quote(f"{url}/v1/completions")} -H 'content-type: application/json' -d '{request}'

  {url}

  {rill} generate "ROMEO:" --temperature 0.5 --target {shlex.quote(target)}

Ctrl-C ends it."""
