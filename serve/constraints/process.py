"""The process that compiles constraints, as the server sees it."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

from rill.processes import python_command, python_environment
from rill.serve.constraints.jobs import CANCEL, framed
from rill.serve.errors import CompilerError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_ATTEMPTS = 3  # to find a process that does not end


class CompilerProcess:
    """Runs jobs one after the other. It starts with the first, and again if it ends."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._asking: asyncio.Task[bytes] | None = None
        self._closed = False

    async def run(self, job: bytes) -> bytes:
        """Have a packed job done, and return the reply. Raises CompilerError if there is no process."""
        await self._turn.acquire()
        self._asking = asyncio.create_task(self._ask(job))
        self._asking.add_done_callback(self._answered)
        try:
            return await asyncio.shield(self._asking)
        except asyncio.CancelledError:  # no call waits for it: there is a reply at once, and the turn passes on
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(CANCEL)
            raise

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        await self._end()
        if self._asking is not None:
            await asyncio.wait([self._asking])

    def _answered(self, asking: asyncio.Task[bytes]) -> None:
        self._turn.release()
        if not asking.cancelled():
            asking.exception()  # even if no call waits for it any more

    async def _ask(self, job: bytes) -> bytes:
        for _ in range(_ATTEMPTS):
            try:
                process = await self._started()
                return await _exchange(process, job)
            except (OSError, asyncio.IncompleteReadError):  # somebody ended it, or there are no processes any more
                await self._end()
        raise CompilerError("the process that compiles constraints cannot be started, or ends at once")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _started(self) -> Process:
        if self._closed:
            raise CompilerError("the server is shutting down")
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *python_command("rill.serve.constraints.worker"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=python_environment(os.environ | _ONE_THREAD),
            )
        return self._process


async def _exchange(process: Process, job: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(framed(job))
    await process.stdin.drain()
    length = await process.stdout.readexactly(8)
    return await process.stdout.readexactly(int.from_bytes(length, "little"))
