"""Real gateways in processes of their own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from servers import ROOT


@dataclass
class Gateway:
    """A gateway process that is listening."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def run_gateway(target: str, *arguments: object, port: int = 0) -> Iterator[Gateway]:
    """`python -m rill.gateway --target TARGET ARGUMENTS --port PORT`, from its line to its end."""
    with subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-P", "-m", "rill.gateway"),
            *("--target", target, *map(str, arguments), "--port", str(port)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.fullmatch(r"rill: http on (https?://\S+)\n", line)
            if not found:
                process.kill()
                raise AssertionError(f"the gateway did not start: {line!r} {process.communicate()[1]!r}")
            yield Gateway(process, found[1])
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
