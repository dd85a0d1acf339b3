"""How busy the load generator itself was: if it cannot keep up, a load says little about the server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

TICK = 0.01  # seconds
BUSY = 0.9  # of a core: from here on the client may limit a load
LATE_MS = 10.0  # the 99th percentile of its lag: from here on latencies are partly the client's own


@dataclass
class LoadGenerator:
    """CPU seconds of this process within `seconds`, and how late its event loop was with what was due."""

    seconds: float = 0.0
    cpu: float = 0.0
    lag: list[float] = field(default_factory=list)  # at least one value once the context has ended
    due: float = 0.0  # of the next tick


@asynccontextmanager
async def watched() -> AsyncIterator[LoadGenerator]:
    """Measure this process inside the context."""
    client = LoadGenerator()
    started, cpu = time.perf_counter(), time.process_time()
    client.due = started + TICK
    ticking = asyncio.create_task(_tick(client))
    try:
        yield client
    finally:
        ticking.cancel()
        now = time.perf_counter()
        # A loop that was too busy for a single tick is as late as the tick that is due.
        client.lag.append(max(now - client.due, 0.0))
        client.seconds, client.cpu = now - started, time.process_time() - cpu


async def _tick(client: LoadGenerator) -> None:
    while True:
        await asyncio.sleep(client.due - time.perf_counter())
        now = time.perf_counter()
        client.lag.append(now - client.due)
        client.due = now + TICK
