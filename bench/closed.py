"""The closed loop over gRPC: each of N streams begins its next text as soon as the last one is complete."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median
from typing import Any

import grpc
import grpc.aio

from rill.bench import BenchError
from rill.bench.floors import Floor, sample
from rill.bench.latency import Percentiles, Tally, TextTimes, percentiles
from rill.bench.load_generator import LoadGenerator, watched
from rill.bench.options import Objective
from rill.bench.server import Server, Spent
from rill.bench.workload import Workload

WINDOWS = 8  # of a load, with the floors measured before, between and after them
WARM_UP = 0.4  # of a window's time, before it
FLOOR_SHARE = 0.04  # a floor's sample lasts this share of a load
BEGIN_SECONDS = 60.0  # at most, until every stream has its first character


@dataclass(frozen=True)
class Load:
    """What `streams` readers received within `seconds`, and what it cost the server.

    `first_character_ms` is from the call to its first character; `inter_character_us` is the time between two
    messages of a text divided by the characters of the second; the server reports `queued_ms` for complete texts.
    `on_time_texts` is the share of complete texts that met the objective. `slowest_to_mean` compares the characters of
    the stream that got the fewest, in all windows together, with the mean. `server_megabytes` is the
    largest resident memory while the streams were live, and `kilobytes_per_stream` its excess over the server at rest.
    `other_cores` is how many cores were busy with programs that are not part of the benchmark. These, and CPU times,
    are None for a server that was not started here. `windows` are the speeds of the parts that the load was measured
    in, in characters a second, and `cpu_windows` their `server_cpu_us_per_character`; a ratio is the median over the
    windows of one to that of the floor around it.
    """

    streams: int
    seconds: float
    texts: int  # complete ones
    characters_per_second: float
    messages_per_second: float
    characters_per_message: float
    first_character_ms: Percentiles
    inter_character_us: Percentiles
    queued_ms: Percentiles
    on_time_texts: float | None
    on_time_characters_per_second: float
    slowest_to_mean: float
    server_cpu_us_per_character: float | None
    server_megabytes: float | None
    kilobytes_per_stream: float | None
    client_cpu_share: float
    client_lag_ms: Percentiles
    other_cores: float | None
    windows: list[float]
    cpu_windows: list[float | None]
    ratios: dict[str, float]


@dataclass(frozen=True)
class Window:
    """One part of a load."""

    tally: Tally
    client: LoadGenerator
    spent: Spent | None
    megabytes: float | None

    @property
    def speed(self) -> float:
        """Characters a second."""
        return self.tally.characters / self.client.seconds

    @property
    def cpu_us(self) -> float | None:
        """The server's CPU microseconds a character; None if that is unknown, or no character arrived."""
        return 1e6 * self.spent.server / self.tally.characters if self.spent and self.tally.characters else None


class Readers:
    """The streams of a closed loop; they count into `tally`, which may be replaced at any time."""

    def __init__(self, stub: Any, workload: Workload, streams: int, objective: Objective) -> None:
        self._stub, self._workload, self._streams, self._objective = stub, workload, streams, objective
        self._missing = streams  # streams without a character so far
        self.all_begun = asyncio.Event()
        self.tally = Tally()

    async def read(self, stream: int) -> None:
        """Read texts, one after the other, until cancelled. Raises BenchError if one fails."""
        request = self._workload.request()
        # First texts differ in length: streams that all began and ended together would not be a steady load.
        request.max_chars = max(request.max_chars * (stream + 1) // self._streams, 1)
        begun = False
        while True:
            text = TextTimes(time.perf_counter(), self._objective)
            try:
                async for message in self._stub.Generate(request):
                    characters = text.received(message, time.perf_counter(), self.tally)
                    self.tally.by_stream[stream] += characters
                    if not begun:
                        begun = True
                        self._has_begun()
            except grpc.aio.AioRpcError as error:
                raise BenchError(f"a stream failed: {error.code().name}: {error.details()}") from None
            request = self._workload.request()

    def _has_begun(self) -> None:
        self._missing -= 1
        if not self._missing:
            self.all_begun.set()


@asynccontextmanager
async def busy(stub: Any, workload: Workload, streams: int, objective: Objective) -> AsyncIterator[Readers]:
    """Read with N streams inside the context, which begins when each has a character. Raises BenchError if one fails.

    `stub` has the `Generate` of a TextGenerationStub.
    """
    readers = Readers(stub, workload, streams, objective)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(readers.read(stream)) for stream in range(streams)]
            try:
                async with asyncio.timeout(BEGIN_SECONDS):
                    await readers.all_begun.wait()
            except TimeoutError:
                raise BenchError(f"some of {streams} streams had no character after {BEGIN_SECONDS:g} s") from None
            yield readers
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def window(server: Server, workload: Workload, streams: int, seconds: float, objective: Objective) -> Window:
    """Load `server` for `seconds` after a warm-up. Raises BenchError if a stream fails."""
    async with (
        server.connected() as stub,
        busy(stub, workload, streams, objective) as readers,
    ):
        await asyncio.sleep(WARM_UP * seconds)
        readers.tally = tally = Tally()
        before = server.spent()
        async with watched() as client:
            await asyncio.sleep(seconds)
            readers.tally = Tally()
        after, megabytes = server.spent(), server.megabytes()
    spent = after.since(before) if before and after else None
    return Window(tally, client, spent, megabytes)


async def measure(
    server: Server,
    workload: Workload,
    streams: int,
    seconds: float,
    objective: Objective,
    floors: Sequence[Floor],
    advance: Callable[[], None],
) -> Load:
    """Measure a load in windows, with the floors sampled around each; `advance` is called after each window."""
    await window(server, workload, streams, seconds / WINDOWS, objective)
    windows = []
    for _ in range(WINDOWS):
        await sample(floors, FLOOR_SHARE * seconds)
        windows.append(await window(server, workload, streams, seconds / WINDOWS, objective))
        advance()
    await sample(floors, FLOOR_SHARE * seconds)
    return load_of(streams, windows, server, floors)


def load_of(streams: int, windows: Sequence[Window], server: Server, floors: Sequence[Floor]) -> Load:
    """Combine the windows of a load. Raises BenchError if no character arrived."""
    seconds = sum(part.client.seconds for part in windows)
    tallies = [part.tally for part in windows]
    characters, messages, texts = (
        sum(getattr(tally, name) for tally in tallies) for name in ("characters", "messages", "texts")
    )
    if not characters:
        raise BenchError(f"{streams} streams: no character arrived within {seconds:g} s; use a larger --seconds")
    by_stream = sum((tally.by_stream for tally in tallies), Counter[int]())
    spent = [part.spent for part in windows if part.spent]
    megabytes = max((part.megabytes for part in windows if part.megabytes), default=None)
    speeds = [part.speed for part in windows]
    cpu = [part.cpu_us for part in windows]
    return Load(
        streams=streams,
        seconds=seconds,
        texts=texts,
        characters_per_second=characters / seconds,
        messages_per_second=messages / seconds,
        characters_per_message=characters / messages,
        first_character_ms=percentiles([value for tally in tallies for value in tally.first], 1e3),
        inter_character_us=percentiles([value for tally in tallies for value in tally.inter], 1e6),
        queued_ms=percentiles([value for tally in tallies for value in tally.queued], 1e3),
        on_time_texts=sum(tally.on_time_texts for tally in tallies) / texts if texts else None,
        on_time_characters_per_second=sum(tally.on_time_characters for tally in tallies) / seconds,
        slowest_to_mean=min(by_stream[stream] for stream in range(streams)) * streams / characters,
        server_cpu_us_per_character=1e6 * sum(part.server for part in spent) / characters if spent else None,
        server_megabytes=megabytes,
        kilobytes_per_stream=_beyond_rest(server, megabytes, streams),
        client_cpu_share=sum(part.client.cpu for part in windows) / seconds,
        client_lag_ms=percentiles([value for part in windows for value in part.client.lag], 1e3),
        other_cores=sum(part.others for part in spent) / seconds if spent else None,
        windows=speeds,
        cpu_windows=cpu,
        ratios=_ratios(speeds, cpu, floors),
    )


def _beyond_rest(server: Server, megabytes: float | None, streams: int) -> float | None:
    if megabytes is None or server.rest_megabytes is None:
        return None
    return 1e3 * (megabytes - server.rest_megabytes) / streams


def _ratios(speeds: Sequence[float], cpu: Sequence[float | None], floors: Sequence[Floor]) -> dict[str, float]:
    """Compute speeds relative to each floor, and CPU time a character relative to that of the decode graph."""
    ratios = {f"ratio_to_{floor.name}": _paired(speeds, floor.samples) for floor in floors}
    for floor in floors:
        if floor.name == "decode" and any(cpu):
            ratios["cpu_ratio_to_decode"] = _paired(cpu, floor.cpu)
    return ratios


def _paired(windows: Sequence[float | None], around: Sequence[float]) -> float:
    """Return the median over the windows of a window's value divided by the mean of the samples around it."""
    pairs = zip(windows, pairwise(around), strict=True)
    return median(value / mean(pair) for value, pair in pairs if value is not None)
