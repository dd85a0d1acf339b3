"""A server for tests that end it and start it again on the same port, while clients go on."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT, Server


@contextmanager
def started(folder: Path, key: Path, port: int | str = 0, end: signal.Signals = signal.SIGKILL) -> Iterator[Server]:
    """A server on this port; at the end it is killed without a word, unless told to end in another way."""
    arguments = [folder, "--port", port, "--resume-key-file", key, "--drain-seconds", 1.2]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "serve", *map(str, arguments)],
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
