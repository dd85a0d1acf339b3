"""How fast a bundle is, in process and over gRPC, side by side in one run.

    python -m rill.bench --bundle bundles/shakespeare --json bench.json --plot bench.png
    python -m rill.bench --bundle bundles/shakespeare --peers
    python -m rill.bench load --bundle bundles/shakespeare --streams 1 8 64 --seconds 5 --max-chars 2000
    python -m rill.bench open --bundle bundles/shakespeare --mixes mixed --rates 50 75
    python -m rill.bench load --bundle bundles/shakespeare --target HOST:PORT

floor    in process, for a batch as large as each number of streams, on one thread: the bundle's decode graph, a loop
         around model.onnx with sampling in NumPy, and an eager PyTorch loop for a model of the same shape (with random
         weights: speed does not depend on their values)
load     over gRPC, from a server of its own or the one at --target, read by so many streams at once; the wait for a
         first character beside a ping-pong; with --peers, the same load on plain servers of the same API
open     texts that begin at random moments, whether or not earlier ones are complete, at rates relative to the capacity
profile  where an engine round's time goes, by the server's own timers

Without a part: all of them. Machines change their speed from second to second, so a load is cut into windows with the
floors measured between them, and a ratio is the median over the windows of a window's speed to that of the floor around
it. What each figure means: docs/design/benchmarks.md. The servers are ended with the benchmark, however that ends.
"""

import asyncio
import json
import sys

from rich.console import Console

from rill.bench.errors import BenchError
from rill.bench.options import options_of
from rill.bench.report_json import document
from rill.bench.run import run
from rill.bench.tables import tables
from rill.bundle import BundleError, read_bundle
from rill.serve.errors import StartError
from rill.train.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if it could not be run as asked, 130 if it was interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = options_of(arguments, __doc__)
    try:
        bundle = read_bundle(options.bundle)
        found = asyncio.run(run(options, bundle))
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        for table in tables(found, options.objective):
            console.print(table)
        for note in found.notes:
            console.print(note)
        written = document(["python", "-m", "rill.bench", *arguments], options, bundle, found)
        if options.json:
            options.json.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        if options.plot:
            from rill.bench.plot import draw  # noqa: PLC0415  # loading matplotlib takes longer than a short benchmark

            draw(written, options.plot)
    except (BenchError, BundleError, StartError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130
    return 0
