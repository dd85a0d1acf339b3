"""Compare Rill's sampling of many short texts with a plain PyTorch loop over the same weights, in one run.

    python -m rill.bench.sampling
    python -m rill.bench.sampling --run runs/molecules --streams 128 --json sampling.json

Without --run the model is of REINVENT's shape, with random weights: a GRU of 3 layers of 512 units, an embedding of 256
and 35 symbols; and texts have the lengths of the molecules of MOSES, in such symbols: 35 on average. With --run, a run
folder of a model with an end symbol, texts end where the model ends them. The rows of a batch of the loop wait for the
longest.

The server has one processor core for itself, with the int8 bundle, and the client the other. The loop runs on the
server's core by turns with it, with one thread. A ratio is of a pair of windows, one after the other; the second ratio
is of symbols a second of CPU time, and says more where other programs keep the cores busy.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from rill.bench import BenchError
from rill.bench.cores import on_core, two_cores
from rill.bench.server import Server, end_on_signals, own_server, rill
from rill.cli.batch.runner import SAMPLES_AT_ONCE, GeneratedText, Servers
from rill.cli.local_server import StartError
from rill.client.requests import generate_request
from rill.client.seeds import seed_of
from rill.export.errors import UnsupportedError
from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle
from rill.files import replaced
from rill.processes import python_command, python_environment
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import TrainError
from rill.train.nets.model import CharacterModel
from rill.train.record.folder import RunConfig, save_config
from rill.train.record.run import Run, load_run, save_weights
from rill.vocabulary import Vocabulary

SYMBOLS = "\n#%()+-./0123456789=@BCFHINOPS[]cnos"  # 35
LOOP = tuple(python_command("rill.bench.peers.sampling_loop"))
WARM_UP = 1.0  # seconds, until all streams are between a text's beginning and its end
LENGTHS = 27, 29, 30, 31, 32, 33, 33, 34, 35, 35, 36, 37, 37, 38, 38, 39, 40, 41, 42, 43  # a twentieth of MOSES each
MOST_CHARS = 256  # of a text with an end of its own


class Side(NamedTuple):
    """Symbols and texts made in so many seconds, and the CPU seconds that they took."""

    symbols: int
    texts: int
    seconds: float
    cpu: float

    def __str__(self) -> str:
        speeds = f"{self.symbols / self.seconds:,.0f} symbols/s, {self.texts / self.seconds:,.0f} texts/s"
        return f"{speeds}, {1e6 * self.cpu / max(self.texts, 1):,.0f} µs of CPU a text"


@dataclass(frozen=True)
class Pair:
    """What the loop and the server did, one after the other."""

    loop: Side
    rill: Side
    client_cores: float  # that the client kept busy

    @property
    def ratio(self) -> float:
        """How many times as fast Rill is."""
        return (self.rill.symbols / self.rill.seconds) / (self.loop.symbols / self.loop.seconds)

    @property
    def cpu_ratio(self) -> float:
        """How many times as many symbols it makes in the same CPU time."""
        return (self.rill.symbols / self.rill.cpu) / (self.loop.symbols / self.loop.cpu)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="python -m rill.bench.sampling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a run folder (default: random weights)")
    parser.add_argument("--streams", type=int, default=128, metavar="N", help="texts at a time (default: %(default)d)")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="rows of the loop (default: %(default)d)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="of windows (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=8, help="of a window (default: %(default)g)")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="of the bundle (default: int8)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    try:
        pairs = _run(options)
    except (BenchError, StartError, TrainError, UnsupportedError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    ratio, cpu_ratio = median(pair.ratio for pair in pairs), median(pair.cpu_ratio for pair in pairs)
    print(f"Rill is {ratio:.2f} times as fast, by CPU time {cpu_ratio:.2f} times (medians of {len(pairs)})")
    if options.json:
        with replaced(options.json) as file:
            found = [asdict(pair) | {"ratio": pair.ratio, "cpu_ratio": pair.cpu_ratio} for pair in pairs]
            file.write((json.dumps(found, indent=1) + "\n").encode())
    return 0


def _run(options: argparse.Namespace) -> list[Pair]:
    cores = two_cores()
    if cores is None:
        raise BenchError("two processor cores are needed: one for the server and one for the client")
    run = load_run(options.run) if options.run else _random_run()
    if options.run and not run.vocabulary.ends:
        raise BenchError(f"{options.run} is a model without an end symbol; its texts do not end by themselves")
    if run.model.cell != "gru" or not run.model.embedding or run.model.ngrams > 1:
        raise BenchError(f"{options.run} is not a GRU with an embedding and without n-gram tables, as the loop has it")
    with tempfile.TemporaryDirectory(prefix="rill-sampling-") as folder:
        bundle, saved = Path(folder, "model"), Path(folder, "run")
        built = build_bundle(run, bundle.name, options.precision)
        write_bundle(built, manifest_of(built, {}, {}), bundle)
        saved.mkdir()
        save_config(saved, RunConfig(run.model, run.training, run.vocabulary))
        save_weights(saved, run.build())
        return asyncio.run(_measure(options, bundle, saved, cores))


async def _measure(options: argparse.Namespace, bundle: Path, run: Path, cores: tuple[int, int]) -> list[Pair]:
    end_on_signals()
    lengths = None if options.run else LENGTHS
    with on_core(cores[1]):
        async with own_server(rill(bundle, "--no-access-log"), cores[0]) as server:
            return await _pairs(options, server, run, lengths, cores[0])


def _random_run() -> Run:
    torch.manual_seed(0)
    config = ModelConfig(layers=3, hidden=512, embedding=256)
    weights = CharacterModel(config, len(SYMBOLS)).state_dict()
    return Run(Path("random"), config, TrainingConfig(steps=1), Vocabulary(tuple(sorted(SYMBOLS))), (), weights)


async def _pairs(
    options: argparse.Namespace, server: Server, run: Path, lengths: Sequence[int] | None, core: int
) -> list[Pair]:
    """Run both by turns."""
    pairs = []
    async with _loop(run, options.batch, lengths, core) as loop, _streams(server, options.streams, lengths) as load:
        for number in range(options.pairs):
            side = await loop(options.seconds)
            pairs.append(pair := Pair(side, *await load(options.seconds)))
            print(
                f"{number + 1}: loop {pair.loop}; Rill {pair.rill}, client {pair.client_cores:.0%} busy; "
                f"ratio {pair.ratio:.2f}, by CPU time {pair.cpu_ratio:.2f}",
                flush=True,
            )
    return pairs


@asynccontextmanager
async def _loop(
    run: Path, batch: int, lengths: Sequence[int] | None, core: int
) -> AsyncIterator[Callable[[float], Awaitable[Side]]]:
    """Start the loop; yields what lets it sample for some seconds."""
    command = [*LOOP, str(run), "--batch", str(batch), *(["--lengths", *map(str, lengths)] if lengths else [])]
    pipe = asyncio.subprocess.PIPE
    with on_core(core):
        process = await asyncio.create_subprocess_exec(*command, env=python_environment(), stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def sample(seconds: float) -> Side:
        stdin.write(f"{seconds}\n".encode())
        if not (line := await stdout.readline()):
            raise BenchError("the loop ended early; what it printed says why")
        symbols, texts, took, cpu = line.split()
        return Side(int(symbols), int(texts), float(took), float(cpu))

    try:
        if await stdout.readline() != b"ready\n":
            raise BenchError("the loop did not start; what it printed says why")
        yield sample
    finally:
        stdin.close()
        await process.wait()


@asynccontextmanager
async def _streams(
    server: Server, streams: int, lengths: Sequence[int] | None
) -> AsyncIterator[Callable[[float], Awaitable[tuple[Side, float]]]]:
    """Connect to the server; yields what loads it for some seconds, as `rill batch --samples` does."""
    servers, numbers = Servers(server.target, "", 30.0), count(1)
    request = generate_request("", max_chars=MOST_CHARS, seed=0)
    draw = random.Random(0)
    await servers.served_model()

    async def load(seconds: float) -> tuple[Side, float]:
        symbols = texts = 0
        is_over = False

        def received(_: int, made: GeneratedText) -> None:
            nonlocal symbols, texts
            symbols += made.chars
            texts += 1

        async def stream() -> None:
            while not is_over:
                request_now = type(request)()
                request_now.CopyFrom(request)
                if lengths:
                    request_now.max_chars = draw.choice(lengths)
                await servers.samples(
                    request_now, [seed_of(0, next(numbers)) for _ in range(SAMPLES_AT_ONCE)], received
                )

        running = [asyncio.create_task(stream()) for _ in range(streams)]
        await asyncio.sleep(WARM_UP)
        before, spent = (symbols, texts), server.spent()
        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        took, client = time.perf_counter() - started, time.process_time() - cpu
        made, done, now = symbols - before[0], texts - before[1], server.spent()
        is_over = True
        await asyncio.gather(*running)
        assert spent is not None
        assert now is not None
        return Side(made, done, took, now.since(spent).server), client / took

    try:
        yield load
    finally:
        await servers.close()


if __name__ == "__main__":
    sys.exit(main())
