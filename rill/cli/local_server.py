"""A private server of one bundle, which ends with the command that started it, however that ends.

`python -m rill.cli.local_server` is the server: `rill serve` that also ends when its standard input does. Its parent
holds the other end of that pipe, which the operating system closes even after kill -9.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rill.processes import memory_file, python_command, python_environment
from rill.programs import run

START_SECONDS = 120.0  # at most, until the server listens
KEY_BYTES = 32  # of a resume key
READY = re.compile(r"\S+ listening on (\S+:\d+)\b")


class StartError(ValueError):
    """A server did not start; the message is the reason that it gave."""


@contextmanager
def local_server(bundle: str, *flags: str, key: str | None = None) -> Iterator[str]:
    """Start a server of `bundle` with these flags of `rill serve`; yields its HOST:PORT. Raises StartError.

    `key` is the file with the key of its resume tokens. By default it is one that this user's private servers share,
    so that the next command can continue from a token.
    """
    if key_file := key or _shared_key():
        flags = (*flags, "--resume-key-file", key_file)
    command = python_command("rill.cli.local_server", bundle, "--port", "0", "--no-access-log", *flags)
    with (
        sigterm_unwinds(),
        memory_file() as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # The user's settings for servers are about servers that others use.
            env={name: value for name, value in python_environment().items() if not name.startswith("RILL_SERVE_")},
            start_new_session=True,  # Ctrl-C is for the command
        ) as process,
    ):
        try:
            target = _address(process, log)
            try:
                yield target
            except Exception:
                if process.poll() is not None:
                    print(f"error: {_describe_end(bundle, process, log)}", file=sys.stderr)
                raise
        finally:
            process.kill()  # nobody else uses it, so there is nothing to drain


def _address(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    assert process.stdout is not None
    started = time.monotonic()
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.daemon = True  # SIGTERM may arrive before it can be cancelled
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line and time.monotonic() - started >= START_SECONDS:
        raise StartError(f"the server did not listen within {START_SECONDS:.0f} s")
    return address_of(line, log)


def _describe_end(bundle: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    reason = f": {last_line(log)}" if process.returncode > 0 else ""
    return f"the private server of {bundle} ended (exit status {process.returncode}){reason}"


def address_of(line: bytes, log: IO[bytes]) -> str:
    """Find HOST:PORT in the line that a server prints when it listens. Raises StartError, from its log."""
    if ready := READY.match(line.decode(errors="replace")):
        return ready[1]
    raise StartError(last_line(log))


def last_line(log: IO[bytes]) -> str:
    """Return what a server logged last: why it ended, if it did."""
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    written = [line.strip() for line in lines if line.strip()]
    return written[-1].removeprefix("error: ") if written else "it logged nothing"


def _shared_key() -> str | None:
    """Return the file with this user's key, made if there is none; None where it cannot be kept or is not a key."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "rill"
    path = folder / "resume.key"
    try:
        if not folder.is_absolute():
            return None
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as new, suppress(FileExistsError):
                new.write(secrets.token_bytes(KEY_BYTES))
                new.flush()
                os.link(new.name, path)  # whole, and the same for all, whichever command is first
        return str(path) if len(path.read_bytes()) == KEY_BYTES else None
    except (OSError, RuntimeError):
        return None


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM leave the context, with exit status 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run("serve", sys.argv[1:]))
