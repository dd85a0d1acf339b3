"""Closed loop over gRPC: so many streams, and each begins its next text as soon as the last one is complete."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import grpc
import grpc.aio
import numpy as np

from bench.errors import BenchError
from bench.server import Server, Spent
from protos import rill_pb2 as pb
from protos.rill_pb2_grpc import TextGenerationStub

WARM_UP = 0.4  # of a window's time, before it


@dataclass(frozen=True)
class Percentiles:
    """None where nothing was measured."""

    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Load:
    """What `streams` readers saw within `seconds`, and what it cost the server.

    `first_character_ms` is from the call to its first character; `inter_character_us` is the time between two
    messages of a text divided by the characters of the second. `other_cores` is how many cores were busy with programs
    that are not part of the benchmark. It and the two before it are None for a server that was not started here.
    `windows` are the speeds of the parts that the load was measured in, in characters a second.
    """

    streams: int
    seconds: float
    texts: int  # complete ones
    characters_per_second: float
    messages_per_second: float
    characters_per_message: float
    first_character_ms: Percentiles
    inter_character_us: Percentiles
    server_cpu_us_per_character: float | None
    server_megabytes: float | None
    other_cores: float | None
    windows: list[float]


@dataclass
class Tally:
    """What all streams together have received in one window of a load; times in seconds."""

    characters: int = 0
    messages: int = 0
    texts: int = 0
    first: list[float] = field(default_factory=list)
    inter: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of the window
    spent: Spent | None = None  # within it


class Readers:
    """The streams of a closed loop; they count into `tally`, which may be replaced at any time."""

    def __init__(self, stub: TextGenerationStub, model: str, streams: int, max_chars: int) -> None:
        self._stub, self._model, self._streams, self._max_chars = stub, model, streams, max_chars
        self.tally = Tally()

    async def read(self, stream: int) -> None:
        """Read texts, each with a seed of its own, until cancelled. Raises BenchError if one fails."""
        # First texts differ in length: streams that all began and ended together would be no steady load.
        length = max(self._max_chars * (stream + 1) // self._streams, 1)
        for seed in count(stream, self._streams):
            sampling = pb.Sampling(seed=seed)
            try:
                await self._text(pb.GenerateRequest(model=self._model, max_chars=length, sampling=sampling))
            except grpc.aio.AioRpcError as error:
                raise BenchError(f"a stream failed: {error.code().name}: {error.details()}") from None
            length = self._max_chars

    async def _text(self, request: pb.GenerateRequest) -> None:
        last = time.perf_counter()
        begun = False
        async for message in self._stub.Generate(request):
            now = time.perf_counter()
            tally, characters = self.tally, len(message.text)
            tally.messages += 1
            tally.characters += characters
            if not begun:
                tally.first.append(now - last)
            elif characters:
                tally.inter.append((now - last) / characters)
            begun, last = True, now
        self.tally.texts += 1


async def window(server: Server, model: str, streams: int, max_chars: int, seconds: float) -> Tally:
    """Load `server` with texts of `max_chars` characters, on one connection. Raises BenchError if a stream fails."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        readers = Readers(TextGenerationStub(channel), model, streams, max_chars)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(readers.read(stream)) for stream in range(streams)]
                await asyncio.sleep(WARM_UP * seconds)
                readers.tally = tally = Tally()
                started, before = time.perf_counter(), server.spent()
                await asyncio.sleep(seconds)
                readers.tally = Tally()
                tally.seconds, after = time.perf_counter() - started, server.spent()
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
    if before and after:
        tally.spent = Spent(after.server - before.server, max(after.others - before.others, 0.0))
    return tally


def load_of(streams: int, windows: Sequence[Tally], server: Server) -> Load:
    """The windows of a load taken together. Raises BenchError if nothing came."""
    seconds = sum(tally.seconds for tally in windows)
    characters, messages = (sum(getattr(tally, name) for tally in windows) for name in ("characters", "messages"))
    if not characters:
        raise BenchError(f"{streams} streams: no character came within {seconds:g} s; give more --seconds")
    spent = [tally.spent for tally in windows if tally.spent]
    return Load(
        streams=streams,
        seconds=seconds,
        texts=sum(tally.texts for tally in windows),
        characters_per_second=characters / seconds,
        messages_per_second=messages / seconds,
        characters_per_message=characters / messages,
        first_character_ms=_percentiles([value for tally in windows for value in tally.first], 1e3),
        inter_character_us=_percentiles([value for tally in windows for value in tally.inter], 1e6),
        server_cpu_us_per_character=1e6 * sum(part.server for part in spent) / characters if spent else None,
        server_megabytes=server.megabytes(),
        other_cores=sum(part.others for part in spent) / seconds if spent else None,
        windows=[tally.characters / tally.seconds for tally in windows],
    )


def _percentiles(values: list[float], scale: float) -> Percentiles:
    if not values:
        return Percentiles(None, None)
    p50, p99 = scale * np.percentile(values, [50, 99])
    return Percentiles(float(p50), float(p99))
