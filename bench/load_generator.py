"""How busy the load generator itself was: a load that it cannot keep up with says little about the server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

TICK = 0.01  # seconds
BUSY = 0.9  # of a core: from here on the client may be what limits a load
LATE_MS = 10.0  # the 99th percentile of its lag: from here on latencies are the client's own in part


@dataclass
class Client:
    """CPU seconds of this process within `seconds`, and how late its event loop came to what was due."""

    seconds: float = 0.0
    cpu: float = 0.0
    lag: list[float] = field(default_factory=list)


@asynccontextmanager
async def watched() -> AsyncIterator[Client]:
    """Measure this process meanwhile."""
    client = Client()
    started, cpu = time.perf_counter(), time.process_time()
    ticking = asyncio.create_task(_tick(client.lag))
    try:
        yield client
    finally:
        ticking.cancel()
        client.seconds, client.cpu = time.perf_counter() - started, time.process_time() - cpu


async def _tick(lag: list[float]) -> None:
    while True:
        due = time.perf_counter() + TICK
        await asyncio.sleep(TICK)
        lag.append(time.perf_counter() - due)
