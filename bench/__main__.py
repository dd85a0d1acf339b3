"""How fast a bundle is, in process and over gRPC, side by side in one run.

    python -m bench --bundle bundles/shakespeare
    python -m bench --bundle bundles/shakespeare --streams 1 8 64 --seconds 5 --max-chars 2000 --json bench.json
    python -m bench --bundle bundles/shakespeare --pin --round-milliseconds 5
    python -m bench --bundle bundles/shakespeare --target HOST:PORT

In process, for a batch as large as each number of streams, on one thread: the bundle's decode graph, and an eager
PyTorch loop for a model of the same shape (with random weights: speed does not depend on their values). Over gRPC: a
server of its own, or the one at --target, read by so many streams at once. Machines change their speed from second to
second, so a load is cut into windows with the floors measured between them, and a ratio is the median over the windows
of a window's speed to that of the floor around it. The server is ended with the benchmark, however that ends.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.errors import BenchError
from bench.floors import Floor, floors_of
from bench.load import Load, load_of, window
from bench.report import document, table
from bench.server import Server, on_core, own_server, served_name
from export.bundle import Bundle, BundleError, read_bundle
from serve.errors import StartError
from train.errors import ConfigError

MOST_STREAMS = 4096  # what a server runs at once unless told otherwise
MOST_SECONDS = 600.0  # of one load
WINDOWS = 8  # of a load, with the floors measured before, between and after them
FLOOR_SHARE = 0.04  # a floor's sample lasts this share of a load


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if it could not be run as asked, 130 if it was interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    try:
        bundle = read_bundle(options.bundle)
        server, floors, loads = asyncio.run(_run(options, bundle))
        Console(highlight=False).print(table(server, floors, loads))
        if options.json:
            found = document(["python", "-m", "bench", *arguments], bundle, server, floors, loads)
            options.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except (BenchError, BundleError, StartError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130
    return 0


async def _run(options: argparse.Namespace, bundle: Bundle) -> tuple[Server, list[Floor], list[Load]]:
    """For each number of streams: floors and windows of the load in turn, floors at both ends."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    server_core, client_core = sorted(os.sched_getaffinity(0))[:2] if options.pin else (None, None)
    loads: list[Load] = []
    with on_core(client_core), _progress() as progress:
        stage = progress.add_task("", total=len(options.streams) * WINDOWS)
        async with _server(options, server_core) as server:
            model = await served_name(server.target, bundle.model_id)
            floors = floors_of(bundle, options.streams, options.device)

            async def sample_floors(batch: int) -> None:
                for floor in floors:
                    if floor.batch == batch:
                        floor.sample(FLOOR_SHARE * options.seconds)
                        await asyncio.sleep(0)  # lets Ctrl-C through

            for streams in options.streams:
                windows = []
                for _ in range(WINDOWS):
                    progress.update(stage, description=f"{streams:,} streams over gRPC", refresh=True)
                    await sample_floors(streams)
                    windows.append(await window(server, model, streams, options.max_chars, options.seconds / WINDOWS))
                    progress.advance(stage)
                await sample_floors(streams)
                loads.append(load_of(streams, windows, server))
    return server, floors, loads


@asynccontextmanager
async def _server(options: argparse.Namespace, core: int | None) -> AsyncIterator[Server]:
    if options.target:
        yield Server(options.target)
        return
    flags, rounds = ["--device", options.device], options.round_milliseconds
    if rounds is not None:
        flags += ["--round-milliseconds", str(rounds)]
    async with own_server(options.bundle, flags, core) as server:
        yield server


def _progress() -> Progress:
    """A bar that is drawn between measurements only: a thread that draws would be measured too."""
    columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    console = Console(stderr=True)
    return Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", required=True, type=Path, metavar="B", help="the bundle to measure")
    add("--json", type=Path, metavar="F", help="write everything that was found to this file")
    add("--streams", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="how many at once (default: 1 8 64)")
    add("--seconds", type=float, default=5.0, metavar="S", help="of each load, after a warm-up (default: %(default)s)")
    add("--max-chars", type=int, default=2000, metavar="N", help="characters of a text (default: %(default)s)")
    add("--target", metavar="HOST:PORT", help="measure this running server; --bundle must be one that it serves")
    add("--device", default="auto", help="of the decode graph: auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--round-milliseconds", type=float, metavar="MS", help="of the server's engine rounds, at most")
    add("--pin", action="store_true", help="keep the server on one core and the client on another (Linux)")
    options = parser.parse_args(arguments)
    options.streams = list(dict.fromkeys(options.streams))
    if not all(1 <= streams <= MOST_STREAMS for streams in options.streams):
        parser.error(f"--streams must be from 1 to {MOST_STREAMS}")
    if not 0 < options.seconds <= MOST_SECONDS:
        parser.error(f"--seconds must be more than 0 and at most {MOST_SECONDS:g}, not {options.seconds:g}")
    if options.max_chars < 1:
        parser.error(f"--max-chars must be at least 1, not {options.max_chars}")
    if options.target and (options.pin or options.round_milliseconds is not None):
        parser.error("--pin and --round-milliseconds are for a server that is started here, not for --target")
    if options.pin and not (hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) >= 2):
        parser.error("--pin needs Linux and at least two cores")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


if __name__ == "__main__":
    sys.exit(main())
