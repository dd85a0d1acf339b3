"""Real servers in processes of their own."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rill.client.sync import Client

ROOT = Path(__file__).parent.parent.parent


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll until `condition` holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Server:
    """A server process that is listening."""

    process: subprocess.Popen[str]
    target: str
    line: str

    @property
    def port(self) -> str:
        return self.target.rpartition(":")[2]

    def client(self) -> Client:
        return Client(self.target)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it and wait: its exit status and what it logged."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextmanager
def run_server(*arguments: object, program: Sequence[str] = ("-m", "rill.serve")) -> Iterator[Server]:
    """`python -m rill.serve ARGUMENTS --port 0`, from its listening line to its end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", *program, *map(str, arguments), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.fullmatch(r"rill: listening on (\S+) \(models: .*; provider: \w+\)\n", line)
            if not found:
                process.kill()
                raise AssertionError(f"the server did not start: {line!r} {process.communicate()[1]!r}")
            yield Server(process, found[1], line)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextmanager
def started(folder: Path, key: Path, port: int | str = 0, end: signal.Signals = signal.SIGKILL) -> Iterator[Server]:
    """A server on this port; at the end it is killed without a word, unless told to end in another way."""
    arguments = [folder, "--port", port, "--resume-key-file", key, "--drain-seconds", 1.2]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rill.serve", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.match(r"rill: listening on (127\.0\.0\.1:\d+) ", line)
            assert found, f"the server did not start: {line!r}"
            yield Server(process, found[1], line)
        finally:
            process.send_signal(end)
