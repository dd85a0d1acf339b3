"""The open loop over gRPC: texts begin when they are due, whether or not earlier ones are complete.

Arrivals are a Poisson process, and every time counts from when a text was *due*: if the server or this client stalls,
all texts that were due during the stall show it.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from rill.bench import BenchError
from rill.bench.latency import Percentiles, Tally, TextTimes, percentiles
from rill.bench.load_generator import watched
from rill.bench.options import Objective
from rill.bench.server import Server
from rill.bench.workload import Workload

CAPACITY_STREAMS = 64  # of the closed loop that measures it
WARM_UP = 0.25  # of the time, before it
GRACE = 2.0  # times the time, for texts that are not complete at its end
MOST_OUTSTANDING = 1000  # texts at once; those due beyond that are dropped, and counted


@dataclass(frozen=True)
class Open:
    """Results for the texts that were due within `seconds`.

    Speeds count what arrived within these seconds. Times count from when a text was due; a text without a character
    when the benchmark stops waiting counts with the time it has waited. `on_time_texts` is the share of the offered
    texts that met the objective, `dropped` counts those that were not requested because too many were outstanding,
    `refused` those that the server had no capacity for, `unfinished` those that were not complete at the end.
    """

    mix: str
    percent: float  # of capacity
    capacity_texts_per_second: float
    seconds: float
    offered: int
    completed: int
    dropped: int
    refused: int
    unfinished: int
    offered_texts_per_second: float
    achieved_texts_per_second: float
    characters_per_second: float
    messages_per_second: float
    first_character_ms: Percentiles
    inter_character_us: Percentiles
    queued_ms: Percentiles
    refused_ms: Percentiles  # until a text was refused
    on_time_texts: float
    on_time_characters_per_second: float
    client_cpu_share: float
    client_lag_ms: Percentiles


def arrivals(random: np.random.Generator, rate: float, seconds: float) -> Iterator[float]:
    """Yield when texts are due, in seconds from the beginning: a Poisson process."""
    due = random.exponential(1 / rate)
    while due < seconds:
        yield due
        due += random.exponential(1 / rate)


class Arriving:
    """The texts of an open loop. Those due from `begin` on count; `flow` tallies arrivals, and may be replaced."""

    def __init__(self, stub: Any, workload: Workload, objective: Objective, begin: float) -> None:
        self._stub, self._workload, self._objective, self._begin = stub, workload, objective, begin
        self.outstanding: dict[TextTimes, asyncio.Task[None]] = {}
        self.offered = self.dropped = 0
        self.refusals: list[float] = []  # seconds
        self.tally, self.flow = Tally(), Tally()
        self._uncounted = Tally()

    def counts(self, text: TextTimes) -> bool:
        """Tell whether a text was due within the time that is measured."""
        return text.start >= self._begin

    async def run(self, group: asyncio.TaskGroup, start: float, rate: float, seconds: float) -> None:
        """Begin each text when it is due."""
        for due in arrivals(np.random.default_rng(0), rate, seconds):
            # Even if it is late: other tasks must run.
            await asyncio.sleep(max(start + due - time.perf_counter(), 0))
            text = TextTimes(start + due, self._objective)
            self.offered += self.counts(text)
            if len(self.outstanding) < MOST_OUTSTANDING:
                self.outstanding[text] = group.create_task(self._read(text))
            else:
                self.dropped += self.counts(text)

    async def _read(self, text: TextTimes) -> None:
        tally = self.tally if self.counts(text) else self._uncounted
        try:
            async for message in self._stub.Generate(self._workload.request()):
                self.flow.characters += text.received(message, time.perf_counter(), tally)
                self.flow.messages += 1
            self.flow.texts += 1
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise BenchError(f"a text failed: {error.code().name}: {error.details()}") from None
            if self.counts(text):
                self.refusals.append(time.perf_counter() - text.start)
        del self.outstanding[text]

    async def end(self, seconds: float) -> int:
        """Wait for outstanding texts, then cancel them; returns how many of those that count were incomplete."""
        if self.outstanding:
            await asyncio.wait(self.outstanding.values(), timeout=seconds)
        now = time.perf_counter()
        # A text may be complete though its call has not ended yet.
        unfinished = [text for text in self.outstanding if self.counts(text) and not text.complete]
        self.tally.first += [now - text.start for text in unfinished if not text.characters]
        for task in self.outstanding.values():
            task.cancel()
        return len(unfinished)


async def open_loop(
    server: Server, workload: Workload, capacity: float, percent: float, seconds: float, objective: Objective
) -> Open:
    """Offer `percent` of `capacity` texts a second, for `seconds` after a warm-up. Raises BenchError if one fails."""
    rate = capacity * percent / 100
    warm_up = WARM_UP * seconds
    try:
        async with server.connected() as stub, asyncio.TaskGroup() as group:
            start = time.perf_counter()
            arriving = Arriving(stub, workload, objective, start + warm_up)
            offering = group.create_task(arriving.run(group, start, rate, warm_up + seconds))
            await asyncio.sleep(warm_up)
            arriving.flow = flow = Tally()
            async with watched() as client:
                await asyncio.sleep(start + warm_up + seconds - time.perf_counter())
                arriving.flow = Tally()
            await offering
            unfinished = await arriving.end(GRACE * seconds)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    tally = arriving.tally
    return Open(
        mix=workload.mix.name,
        percent=percent,
        capacity_texts_per_second=capacity,
        seconds=client.seconds,
        offered=arriving.offered,
        completed=tally.texts,
        dropped=arriving.dropped,
        refused=len(arriving.refusals),
        unfinished=unfinished,
        offered_texts_per_second=arriving.offered / seconds,
        achieved_texts_per_second=flow.texts / client.seconds,
        characters_per_second=flow.characters / client.seconds,
        messages_per_second=flow.messages / client.seconds,
        first_character_ms=percentiles(tally.first, 1e3),
        inter_character_us=percentiles(tally.inter, 1e6),
        queued_ms=percentiles(tally.queued, 1e3),
        refused_ms=percentiles(arriving.refusals, 1e3),
        on_time_texts=tally.on_time_texts / max(arriving.offered, 1),
        on_time_characters_per_second=tally.on_time_characters / seconds,
        client_cpu_share=client.cpu / client.seconds,
        client_lag_ms=percentiles(client.lag, 1e3),
    )
