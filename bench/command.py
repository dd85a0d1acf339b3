"""Measure how fast a bundle is, in process and over gRPC, side by side in one run.

    rill bench --bundle bundles/shakespeare --json bench.json --plot bench.png
    rill bench --bundle bundles/shakespeare --peers
    rill bench load --bundle bundles/shakespeare --streams 1 8 64 --seconds 5 --max-chars 2000
    rill bench open --bundle bundles/shakespeare --mixes mixed --rates 50 75
    rill bench load --bundle bundles/shakespeare --target HOST:PORT

floor    in process, for a batch as large as each number of streams, on one thread: the bundle's decode graph, a loop
         around model.onnx with sampling in NumPy, and an eager PyTorch loop for a model of the same shape (with random
         weights: speed does not depend on their values)
load     over gRPC, from a private server or the one at --target, read by N streams at once; the wait for a first
         character beside a ping-pong; with --peers, the same load on plain servers with the same API
open     texts that begin at random times, whether or not earlier ones are complete, at rates relative to the capacity
profile  the time of each stage of an engine round, by the server's own timers

Without a part: all of them. Machines change their speed from second to second, so a load is cut into windows with the
floors measured between them, and a ratio is the median over the windows of a window's speed to that of the floor around
it. docs/design/benchmarks.md explains each figure. The servers end with the benchmark, however that ends.
"""

import asyncio
import sys

from rill.bench.options import options_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 if it could not be run as asked, 130 if it was interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = options_of(arguments, __doc__)
    try:
        from rill.bench.run import benchmark  # noqa: PLC0415  # PyTorch and ONNX Runtime, which --help does without

        return benchmark(options, ["rill", "bench", *arguments])
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        return 130
