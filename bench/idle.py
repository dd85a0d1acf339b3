"""The wait for a first character beside a ping-pong: on an idle server, and for a newcomer to a busy one."""

import asyncio
import time
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rill.bench import BenchError
from rill.bench.closed import busy
from rill.bench.latency import Percentiles, percentiles
from rill.bench.options import Objective
from rill.bench.server import Server
from rill.bench.workload import Workload
from rill.client.connection import options_for
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

CHARACTERS = 8  # of a text whose first character is measured
WARM_UP = 20  # pairs that are not counted
PAUSE = 0.03  # seconds between newcomers, at most: they must not synchronise with the rounds


@dataclass(frozen=True)
class Wait:
    """`ping_ms` is a unary call of the health service on the same channel, between texts."""

    streams: int  # that were busy at the same time
    texts: int
    ping_ms: Percentiles
    first_character_ms: Percentiles
    ratio: float  # of the medians


async def idle_wait(server: Server, model: str, seconds: float) -> Wait:
    """Request texts one after the other from a server that does nothing else."""
    async with grpc.aio.insecure_channel(server.target, options_for(server.target)) as channel:
        await _pairs(channel, model, WARM_UP, 0.0, 0.0)
        return _wait(0, *await _pairs(channel, model, 1, seconds, 0.0))


async def newcomer_wait(
    server: Server, model: str, workload: Workload, streams: int, seconds: float, objective: Objective
) -> Wait:
    """Request one text after the other, at random times, beside N streams of a closed loop."""
    async with (
        grpc.aio.insecure_channel(server.target, options_for(server.target)) as channel,
        server.connected() as stub,
        busy(stub, workload, streams, objective),
    ):
        await _pairs(channel, model, WARM_UP, 0.0, PAUSE)
        return _wait(streams, *await _pairs(channel, model, 1, seconds, PAUSE))


async def _pairs(
    channel: grpc.aio.Channel, model: str, at_least: int, seconds: float, pause: float
) -> tuple[list[float], list[float]]:
    """Time ping-pongs and first characters in turn, for at least `seconds` and `at_least` pairs."""
    health, stub = health_pb2_grpc.HealthStub(channel), TextGenerationStub(channel)
    request = pb.GenerateRequest(model=model, max_chars=CHARACTERS)
    random = np.random.default_rng(0)
    pings: list[float] = []
    firsts: list[float] = []
    end = time.perf_counter() + seconds
    try:
        while len(pings) < at_least or time.perf_counter() < end:
            await _sleep(random, pause)
            started = time.perf_counter()
            await health.Check(health_pb2.HealthCheckRequest())
            pings.append(time.perf_counter() - started)
            await _sleep(random, pause)
            started = time.perf_counter()
            first = None
            async for _ in stub.Generate(request):
                first = first or time.perf_counter()
            if first:
                firsts.append(first - started)
    except grpc.aio.AioRpcError as error:
        raise BenchError(f"a call failed: {error.code().name}: {error.details()}") from None
    return pings, firsts


async def _sleep(random: np.random.Generator, pause: float) -> None:
    if pause:
        await asyncio.sleep(random.uniform(0, pause))


def _wait(streams: int, pings: list[float], firsts: list[float]) -> Wait:
    ping, first = percentiles(pings, 1e3), percentiles(firsts, 1e3)
    if not (ping.p50 and first.p50):
        raise BenchError("no first character arrived; use a larger --seconds")
    return Wait(streams, len(firsts), ping, first, first.p50 / ping.p50)
