"""The HTTP gateway of a server (`rill serve --http-port`): `rill.gateway` in a process of its own.

It is a client of this server as any other. It ends with the server, however that ends: it drains when the pipe to its
standard input closes. When it ends before, it is started again; calls over gRPC notice nothing.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from importlib.util import find_spec
from typing import BinaryIO

from rill.processes import memory_file, python_command, python_environment
from rill.programs import DISTRIBUTION
from rill.serve.config import ServerConfig
from rill.serve.errors import StartError
from rill.serve.operate import restarts
from rill.serve.operate.private_listener import Identity, PrivateListener

READY = "rill: http on "
NEEDED = ("starlette", "uvicorn")  # packages of the extra `http`
START_SECONDS = 60.0  # at most, until it listens
DRAIN_SECONDS = 1.0  # that its requests have once the server's calls have ended: nothing can finish any more
LAST_SECONDS = 5.0  # to end; then it is killed
# Its callers send tokens of their own: one in its environment would let in those that have none.
NOT_PASSED_ON = ("RILL_TOKEN",)

log = logging.getLogger("rill")


def require_usable(config: ServerConfig) -> None:
    """Raise StartError if the gateway cannot do what the options say."""
    if config.http_port is None:
        return
    for name in NEEDED:
        if find_spec(name) is None:
            raise StartError(
                f"--http-port needs the package {name!r}; install it with: pip install '{DISTRIBUTION}[serve,http]'"
            )


class HttpGateway:
    """The process. `line` is what it printed when it listened."""

    def __init__(self, config: ServerConfig, targets: Sequence[str], identity: Identity | None) -> None:
        self.line = ""
        self._config, self._port, self._targets, self._identity = config, config.http_port, targets, identity
        self._process: asyncio.subprocess.Process | None = None
        self._is_kept, self._is_told = True, False

    async def start(self) -> None:
        """Start it, and wait until it listens. Raises StartError."""
        with ExitStack() as stack:
            files = [stack.enter_context(_file_of(text)) for text in self._secrets()]
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    *python_command("rill.gateway", *self._arguments([file.fileno() for file in files])),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env={name: value for name, value in python_environment().items() if name not in NOT_PASSED_ON},
                    pass_fds=[file.fileno() for file in files],
                    start_new_session=True,  # Ctrl-C is for the server, which lets streams finish
                )
            except OSError as error:
                raise StartError(f"the HTTP gateway cannot be started: {error.strerror}") from None
            assert process.stdout
            try:
                async with asyncio.timeout(START_SECONDS):
                    line = (await process.stdout.readline()).decode().rstrip()
            except TimeoutError:
                await self.kill()
                raise StartError(f"the HTTP gateway did not listen within {START_SECONDS:.0f} s") from None
        if not line.startswith(READY):
            raise StartError(f"the HTTP gateway did not start: it ended with status {await process.wait()}")
        self.line, self._port = line, int(line.rpartition(":")[2])

    async def keep_alive(self) -> None:
        """Start it again whenever it has ended, until it is to end."""
        failures, since = 0, time.monotonic()
        while True:
            assert self._process
            status = await self._process.wait()
            if not self._is_kept:
                return
            failures = failures + 1 if time.monotonic() - since < restarts.STEADY_SECONDS else 0
            log.error("the HTTP gateway ended with status %d; restarting it", status)
            await asyncio.sleep(restarts.pause(failures))
            try:
                await self.start()
            except StartError as error:
                log.error("%s", error)
            since = time.monotonic()

    def expect_end(self) -> None:
        """Start it no more: the server drains, and an init system may have sent its signal to all processes."""
        self._is_kept = False

    async def end(self) -> None:
        """Let it end: its streams end with resume tokens."""
        self._is_kept = False
        if self._is_told:
            return
        self._is_told = True
        if self._process and self._process.stdin:
            self._process.stdin.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._process.wait()

    async def kill(self) -> None:
        """Kill it, if it has not ended."""
        self._is_kept = False
        if self._process and self._process.returncode is None:
            # asyncio's own `kill` would reap a process that has just ended, and its status be lost.
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def _secrets(self) -> list[bytes]:
        return [self._identity.certificate, self._identity.key] if self._identity else []

    def _arguments(self, files: Sequence[int]) -> list[str]:
        config = self._config
        arguments = ["--target", ",".join(self._targets), "--host", config.http_host, "--port", str(self._port)]
        if files:
            certificate, key = (f"/dev/fd/{number}" for number in files)
            arguments += ["--tls-ca", certificate, "--tls-cert", certificate, "--tls-key", key]
        else:  # to an address of this machine
            arguments.append("--plaintext-token")
        if config.tls_cert:
            arguments += ["--http-tls-cert", config.tls_cert, "--http-tls-key", config.tls_key]
        if config.tls_client_ca:
            arguments += ["--http-tls-client-ca", config.tls_client_ca]
        for flag, values in (("--allowed-host", config.http_allowed_host), ("--cors", config.http_cors)):
            arguments += [f"{flag}={value}" for value in values]
        if not config.access_log:
            arguments.append("--no-access-log")
        arguments += ["--log-format", config.log_format, "--drain-seconds", str(DRAIN_SECONDS)]
        return [*arguments, "--spread", "--end-with-stdin"]


@asynccontextmanager
async def running(
    config: ServerConfig, targets: Sequence[str], private: PrivateListener | None
) -> AsyncIterator[HttpGateway]:
    """Run the gateway, if there is to be one, and restart it when it ends. Raises StartError if it does not start."""
    gateway = HttpGateway(config, targets, private.identity if private else None)
    if config.http_port is None:
        yield gateway
        return
    try:
        await gateway.start()
        keeping = asyncio.create_task(gateway.keep_alive())
        try:
            yield gateway
        finally:
            keeping.cancel()
            await gateway.end()
    finally:
        await gateway.kill()


def _file_of(content: bytes) -> BinaryIO:
    """Return a file in memory that another process can open by its number."""
    file = memory_file()
    file.write(content)
    file.seek(0)
    return file
