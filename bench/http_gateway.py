"""Compare streams of server-sent events through the HTTP gateway with the same streams over gRPC, in one run.

    python -m rill.bench.http_gateway --bundle bundles/demo
    python -m rill.bench.http_gateway --bundle bundles/demo --streams 1 64 --seconds 20 --json http.json

Starts a server and a gateway before it, and loads both by turns, window after window: N readers, each of which begins
its next text as soon as the last one is complete. All processes share the processor cores that this one may use; for
two, begin with `taskset -c 0,1`. A ratio is the median over the windows of one to the mean of the gRPC windows around
it. First events count from the start of the request to its first character.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

from rill.bench import BenchError
from rill.bench.closed import Window, window
from rill.bench.latency import Percentiles, percentiles
from rill.bench.options import Objective
from rill.bench.server import Server, end_on_signals, own_server, rill
from rill.bench.workload import Workload, plain
from rill.bundle import BundleError, read_bundle
from rill.cli.local_server import StartError
from rill.files import replaced
from rill.processes import python_command, python_environment
from rill.v1 import rill_pb2 as pb

GATEWAY = tuple(python_command("rill.gateway"))
PREFIX = "rill: http on http://"
COUNTS = {"include_usage": True, "continuous_usage_stats": True}
FINISH = {"length": pb.FINISH_REASON_LENGTH, "stop": pb.FINISH_REASON_STOP}


@dataclass(frozen=True)
class Side:
    """What readers received over one protocol; CPU times are those of the server and the gateway together."""

    characters_per_second: float
    characters_per_message: float
    first_character_ms: Percentiles
    cpu_us_per_character: float | None
    client_cpu_share: float
    windows: list[float]


@dataclass(frozen=True)
class Comparison:
    """The two sides at one number of streams, and the ratios of HTTP to gRPC."""

    streams: int
    grpc: Side
    http: Side
    speed_ratio: float
    first_p99_ratio: float
    other_cores: float | None  # that were busy with programs which are not part of the benchmark


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m rill.bench.http_gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle folder")
    parser.add_argument("--streams", type=int, nargs="+", default=[64], metavar="N", help="readers (default: 64)")
    parser.add_argument("--seconds", type=float, default=16, help="for each side (default: %(default)g)")
    parser.add_argument("--windows", type=int, default=4, help="parts of them, taken by turns (default: %(default)d)")
    parser.add_argument("--max-chars", type=int, default=400, help="of each text (default: %(default)d)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    try:
        found = asyncio.run(_run(options))
    except (BenchError, BundleError, StartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    for one in found:
        _print(one)
    if options.json:
        with replaced(options.json) as file:
            file.write((json.dumps([asdict(one) for one in found], indent=1) + "\n").encode())
    return 0


async def _run(options: argparse.Namespace) -> list[Comparison]:
    end_on_signals()
    bundle = read_bundle(options.bundle)
    async with own_server(rill(options.bundle), None) as server, _own_gateway(server) as gateway:
        both = replace(server, processes=gateway.processes)
        http = replace(gateway, counts=not bundle.vocabulary.are_characters)
        workload = Workload(bundle.name, plain(options.max_chars), bundle.vocabulary)
        return [
            await _compare(both, http, workload, streams, options.seconds / options.windows, options.windows)
            for streams in options.streams
        ]


async def _compare(
    server: Server, gateway: "_Gateway", workload: Workload, streams: int, seconds: float, count: int
) -> Comparison:
    """Load both by turns: gRPC first and last."""

    async def load(side: Server) -> Window:
        return await window(side, workload, streams, seconds, Objective())

    grpc, http = [await load(server)], []
    for _ in range(count):
        http.append(await load(gateway))
        grpc.append(await load(server))
    around = [mean((one.speed, other.speed)) for one, other in pairwise(grpc)]
    sides = _side(grpc), _side(http)
    spent = [part.spent.others / part.client.seconds for part in (*grpc, *http) if part.spent]
    p99 = [side.first_character_ms.p99 or float("nan") for side in sides]
    return Comparison(
        streams=streams,
        grpc=sides[0],
        http=sides[1],
        speed_ratio=median(part.speed / other for part, other in zip(http, around, strict=True)),
        first_p99_ratio=p99[1] / p99[0],
        other_cores=mean(spent) if spent else None,
    )


def _side(windows: Sequence[Window]) -> Side:
    seconds = sum(part.client.seconds for part in windows)
    characters, messages = (sum(getattr(part.tally, name) for part in windows) for name in ("characters", "messages"))
    if not characters:
        raise BenchError(f"no character arrived within {seconds:g} s; use a larger --seconds")
    cpu = [part.cpu_us for part in windows if part.cpu_us is not None]
    return Side(
        characters_per_second=characters / seconds,
        characters_per_message=characters / messages,
        first_character_ms=percentiles([value for part in windows for value in part.tally.first], 1e3),
        cpu_us_per_character=mean(cpu) if cpu else None,
        client_cpu_share=sum(part.client.cpu for part in windows) / seconds,
        windows=[part.speed for part in windows],
    )


@dataclass(frozen=True)
class _Gateway(Server):
    """The gateway before a server. Its processes include the server's.

    With `counts` it says of each event how many symbols there are so far: they may be longer than a character.
    """

    counts: bool = False

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["_Events"]:
        """Connect; yields an object with `Generate`."""
        events = _Events(self.target, self.counts)
        try:
            yield events
        finally:
            events.close()


class _Events:
    """Texts over HTTP: each connection is used for one text after the other, as browsers and OpenAI's clients do."""

    def __init__(self, target: str, counts: bool) -> None:
        self._target, self._counts = target, counts
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()

    async def Generate(self, request: pb.GenerateRequest) -> AsyncGenerator[Any, None]:
        """Yield the chunks of a text as messages. Raises BenchError."""
        body = json.dumps(
            {
                "model": request.model,
                "prompt": request.prompt,
                "max_tokens": request.max_chars,
                "seed": request.sampling.seed,
                "stream": True,
                **({"stream_options": COUNTS} if self._counts else {}),
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self._target}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = self._idle.pop() if self._idle else await _connected(self._target)
        is_complete, count = False, 0
        try:
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise BenchError(f"the gateway answered {answer.splitlines()[0].decode()}")
            while size := int(await reader.readline(), 16):
                data = await reader.readexactly(size + 2)
                for event in data[:-2].split(b"\n\n"):
                    if event.startswith(b"data: {"):
                        chunk = json.loads(event[6:])
                        if not chunk["choices"]:  # the usage at the end
                            continue
                        message = _message(chunk["choices"][0])
                        if self._counts:
                            count, before = chunk["usage"]["completion_tokens"], count
                            message.symbol_lengths.extend([1] * (count - before))
                        yield message
            await reader.readexactly(2)
            is_complete = True
        except asyncio.IncompleteReadError:
            raise BenchError("the gateway ended a stream early") from None
        finally:
            if is_complete:
                self._idle.append((reader, writer))
            else:
                writer.close()


def _message(choice: dict[str, Any]) -> pb.GenerateResponse:
    return pb.GenerateResponse(text=choice["text"], finish_reason=FINISH.get(choice["finish_reason"]))


async def _connected(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def _own_gateway(server: Server) -> AsyncIterator[_Gateway]:
    """Start a gateway on a free port; it ends with the context. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        *GATEWAY,
        *("--target", server.target, "--port", "0", "--no-access-log"),
        env=python_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout
    try:
        line = (await process.stdout.readline()).decode().strip()
        if not line.startswith(PREFIX):
            raise BenchError("the gateway did not start")
        yield _Gateway(line.removeprefix(PREFIX), (*server.processes, psutil.Process(process.pid)))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _print(found: Comparison) -> None:
    columns = ("characters/s", "a message", "first p50 ms", "p99 ms", "CPU µs/character", "client CPU")
    print(f"{f'{found.streams} streams':>14}" + "".join(f"{name:>18}" for name in columns))
    for name, side in (("gRPC", found.grpc), ("HTTP", found.http)):
        first = side.first_character_ms
        figures = (side.characters_per_message, first.p50, first.p99, side.cpu_us_per_character, side.client_cpu_share)
        shown = "".join(f"{'-' if figure is None else f'{figure:.2f}':>18}" for figure in figures)
        print(f"{name:>14}{side.characters_per_second:18,.0f}{shown}")
    print(f"HTTP / gRPC: characters/s {found.speed_ratio:.2f}, first event p99 {found.first_p99_ratio:.2f}")
    if found.other_cores is not None:
        print(f"other programs used {found.other_cores:.2f} cores")


if __name__ == "__main__":
    sys.exit(main())
