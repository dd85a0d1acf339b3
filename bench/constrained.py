"""Compare constrained texts with plain ones, in one run: in the server, and step by step in the graphs.

    python -m rill.bench.constrained --bundle bundles/demo
    python -m rill.bench.constrained --bundle bundles/demo --streams 1 8 64 --pairs 20 --json constrained.json
    python -m rill.bench.constrained server --bundle bundles/demo --regex '[A-Z][a-z ]*[.]' --regex '[a-z]+-[a-z]+'
    python -m rill.bench.constrained graph --bundle bundles/demo --rows 64 --states 64 8000

Server: N readers, each of which begins its next text as soon as the last one is complete, by turns without and with a
constraint; each text has the next one of --patterns different expressions. Without --regex they are drawn from the
symbols of the model, have up to 150 states each, and end no text: texts of both sides are equally long.

Graphs: calls of the plain and of the constrained one by turns, at --rows rows, with random tables of --states states,
each of which allows half of the symbols.

A ratio is the median over the pairs of a pair's two. The server has one processor core for itself, where there are two,
and the client and the graphs the other.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

from rill.bench import BenchError
from rill.bench.closed import Window, window
from rill.bench.constrained_step import Stepped, Steps
from rill.bench.cores import on_core, two_cores
from rill.bench.latency import Percentiles, percentiles
from rill.bench.options import MOST_SECONDS, Objective
from rill.bench.server import Server, end_on_signals, own_server, rill
from rill.bench.workload import Workload, drawn_constraints, plain
from rill.bundle import Bundle, BundleError, read_bundle
from rill.cli.local_server import StartError as ServerStartError
from rill.files import replaced
from rill.serve.errors import StartError
from rill.v1 import rill_pb2 as pb


@dataclass(frozen=True)
class Served:
    """Plain and constrained texts at one number of streams; each ratio is constrained to plain."""

    streams: int
    patterns: int
    plain: list[float]  # characters a second, window by window
    constrained: list[float]
    speed_ratio: float
    cpu_ratio: float | None  # of the server's CPU time a character
    first_ms: tuple[Percentiles, Percentiles]  # from the call to the first character
    other_cores: float | None  # that were busy with programs which are not part of the benchmark

    def __str__(self) -> str:
        speeds = f"plain {median(self.plain):,.0f}, constrained {median(self.constrained):,.0f} characters/s"
        cpu = "" if self.cpu_ratio is None else f", server CPU a character × {self.cpu_ratio:.3f}"
        first = ", ".join(f"{one.p50 or 0:.1f} / {one.p99 or 0:.1f}" for one in self.first_ms)
        others = "" if self.other_cores is None else f"; other programs used {self.other_cores:.2f} cores"
        return (
            f"server, {self.streams:,} streams, {self.patterns} patterns: {speeds}: × {self.speed_ratio:.3f}{cpu}; "
            f"first character p50 / p99 {first} ms{others}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 2 for an error."""
    options = _options(arguments)
    try:
        stepped, served = asyncio.run(_run(options))
    except (BenchError, BundleError, ServerStartError, StartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    if options.json:
        with replaced(options.json) as file:
            found = {"graph": [asdict(one) for one in stepped], "server": [asdict(one) for one in served]}
            file.write((json.dumps(found, indent=1) + "\n").encode())
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rill.bench.constrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("part", nargs="?", choices=("graph", "server"), help="one of the two; without it, both")
    add("--bundle", type=Path, required=True, help="a bundle folder")
    add("--streams", type=int, nargs="+", default=[64], metavar="N", help="readers (default: 64)")
    add("--patterns", type=int, default=64, metavar="N", help="different patterns that are drawn (default: 64)")
    add("--regex", action="append", default=[], metavar="R", help="an expression instead of these; may be repeated")
    add("--max-chars", type=int, default=400, metavar="N", help="of each text (default: %(default)d)")
    add("--pairs", type=int, default=8, metavar="N", help="of windows, one after the other (default: %(default)d)")
    add("--seconds", type=float, default=2.0, metavar="S", help="of each window (default: %(default)g)")
    add("--rows", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="of the graphs (default: 1 8 64)")
    add("--states", type=int, nargs="+", default=[64, 1000, 8000], metavar="N", help="of the tables (default: 64 1000"
        " 8000)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add("--json", type=Path, metavar="F", help="write the figures to this file")
    options = parser.parse_args(arguments)
    for name in ("streams", "patterns", "max_chars", "pairs", "rows", "states"):
        given = getattr(options, name)
        if (lowest := min(given) if isinstance(given, list) else given) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {lowest}")
    if not 0 < options.seconds <= MOST_SECONDS:
        parser.error(f"--seconds must be more than 0 and at most {MOST_SECONDS:g}, not {options.seconds:g}")
    return options


async def _run(options: argparse.Namespace) -> tuple[list[Stepped], list[Served]]:
    end_on_signals()
    bundle, cores = read_bundle(options.bundle), two_cores()
    stepped: list[Stepped] = []
    served: list[Served] = []
    with on_core(cores[1] if cores else None):
        if options.part != "server":
            steps = Steps(bundle, options.device)
            for rows, states in product(options.rows, options.states):
                stepped.append(steps.compare(rows, states, options.pairs))
                print(stepped[-1], flush=True)
                await asyncio.sleep(0)  # lets Ctrl-C through
        if options.part != "graph":
            async with own_server(
                rill(options.bundle, "--device", options.device), cores[0] if cores else None
            ) as server:
                for streams in options.streams:
                    served.append(await _served(server, bundle, streams, options))
                    print(served[-1], flush=True)
    return stepped, served


async def _served(server: Server, bundle: Bundle, streams: int, options: argparse.Namespace) -> Served:
    """Load the server by turns; the first window of each side is not counted."""
    constraints = [pb.Constraint(regex=regex) for regex in options.regex]
    constraints = constraints or drawn_constraints(bundle.vocabulary, options.patterns)
    mix, seconds = plain(options.max_chars), options.seconds
    windows: tuple[list[Window], list[Window]] = ([], [])
    workloads = [Workload(bundle.name, mix, bundle.vocabulary, constraints=given) for given in ((), constraints)]
    for _ in range(1 + options.pairs):
        for side, workload in zip(windows, workloads, strict=True):
            side.append(await window(server, workload, streams, seconds, Objective()))
    free, bound = windows[0][1:], windows[1][1:]
    if not all(part.tally.characters for part in (*free, *bound)):
        raise BenchError(f"{streams} streams: no character arrived within {seconds:g} s; use a larger --seconds")
    cpu = [(one.cpu_us, other.cpu_us) for one, other in zip(free, bound, strict=True)]
    spent = [part.spent.others / part.client.seconds for part in (*free, *bound) if part.spent]
    first = [percentiles([value for part in side for value in part.tally.first], 1e3) for side in (free, bound)]
    return Served(
        streams=streams,
        patterns=len(constraints),
        plain=[part.speed for part in free],
        constrained=[part.speed for part in bound],
        speed_ratio=median(other.speed / one.speed for one, other in zip(free, bound, strict=True)),
        cpu_ratio=median(other / one for one, other in cpu if one and other)
        if all(all(pair) for pair in cpu)
        else None,
        first_ms=(first[0], first[1]),
        other_cores=sum(spent) / len(spent) if spent else None,
    )


if __name__ == "__main__":
    sys.exit(main())
