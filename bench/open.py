"""Open loop over gRPC: texts begin when they are due, however the earlier ones fare.

Arrivals are Poisson's, and every time counts from when a text was *due*: if the server, or this client, stalls, all
texts that were due meanwhile show it.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from rill.bench.errors import BenchError
from rill.bench.latency import Objective, Percentiles, Tally, Text, percentiles
from rill.bench.load_generator import watched
from rill.bench.server import Server
from rill.bench.workload import Texts

PERCENTS = (25, 50, 75, 90, 110, 200)  # of the measured capacity
CAPACITY_STREAMS = 64  # of the closed loop that measures it
WARM_UP = 0.25  # of the time, before it
GRACE = 2.0  # times the time, for what is not complete then
MOST_OUTSTANDING = 1000  # texts at once; what is due beyond that is dropped, and counted


@dataclass(frozen=True)
class Open:
    """What became of the texts that were due within `seconds`.

    Speeds are of what arrived within these seconds. Times count from when a text was due; a text that has no character
    when the benchmark stops waiting counts with the time it has waited so far. `on_time_texts` is the share of the
    offered texts that met the objective, `dropped` those that were not asked for because too many were outstanding,
    `refused` those that the server had no room for, `unfinished` those that were not complete in the end.
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
    refused_ms: Percentiles  # until those that were refused knew
    on_time_texts: float
    on_time_characters_per_second: float
    client_cpu_share: float
    client_lag_ms: Percentiles


def arrivals(random: np.random.Generator, rate: float, seconds: float) -> Iterator[float]:
    """When texts are due, in seconds from the beginning: a Poisson process."""
    due = random.exponential(1 / rate)
    while due < seconds:
        yield due
        due += random.exponential(1 / rate)


class Arriving:
    """The texts of an open loop. Those due from `begin` on count; `flow` is what arrives, and may be replaced."""

    def __init__(self, stub: Any, texts: Texts, objective: Objective, begin: float) -> None:
        self._stub, self._texts, self._objective, self._begin = stub, texts, objective, begin
        self.outstanding: dict[Text, asyncio.Task[None]] = {}
        self.offered = self.dropped = 0
        self.refusals: list[float] = []  # seconds
        self.tally, self.flow = Tally(), Tally()
        self._uncounted = Tally()

    def counts(self, text: Text) -> bool:
        """Whether it was due within the time that is measured."""
        return text.start >= self._begin

    async def run(self, group: asyncio.TaskGroup, start: float, rate: float, seconds: float) -> None:
        """Begin every text when it is due."""
        for due in arrivals(np.random.default_rng(0), rate, seconds):
            # Also where it is late already: the others must get their turn.
            await asyncio.sleep(max(start + due - time.perf_counter(), 0))
            text = Text(start + due, self._objective)
            self.offered += self.counts(text)
            if len(self.outstanding) < MOST_OUTSTANDING:
                self.outstanding[text] = group.create_task(self._read(text))
            else:
                self.dropped += self.counts(text)

    async def _read(self, text: Text) -> None:
        tally = self.tally if self.counts(text) else self._uncounted
        try:
            async for message in self._stub.Generate(self._texts.request()):
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
        """Wait so long for what is outstanding, then give it up; returns how many texts that count were incomplete."""
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
    server: Server, texts: Texts, capacity: float, percent: float, seconds: float, objective: Objective
) -> Open:
    """Offer `percent` of `capacity` texts a second, for so long after a warm-up. Raises BenchError if one fails."""
    rate = capacity * percent / 100
    warm_up = WARM_UP * seconds
    try:
        async with server.connected() as stub, asyncio.TaskGroup() as group:
            start = time.perf_counter()
            arriving = Arriving(stub, texts, objective, start + warm_up)
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
        mix=texts.mix.name,
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
