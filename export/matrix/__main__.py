"""The parity matrix: every kind of model in every precision, in several batches and times, with random weights.

    python -m rill.export.matrix              the whole matrix: a quarter of an hour
    python -m rill.export.matrix --quick      few configurations, in which every two values of any two axes meet

Each configuration is run over chained calls from random states, with ONNX Runtime on the CPU. In fp32 the portable and
the serving graphs must be within 1e-5 + 1e-5 |x| of PyTorch in float32 and of NumPy in float64
(`rill.export.parity.float64`), each of which chains states of its own; no row is excused. The serving graphs do not
output logits, so the log-probabilities of forced characters are compared. In int8 the portable graph is compared
likewise with the models with rounded weights, and every step of the serving graphs with the emulation
(`rill.export.parity.emulation`) from the same state. A GRU that resets before the product quantizes an intermediate
value that no output shows: a step that is off by a whole quantization step is excused and counted.

Then the serving graph generates greedily, its own text from its own states, and PyTorch, or in int8 the emulation, must
choose the same characters. A choice within 1e-4 of its boundary is excused and counted; that row continues from the
reference's character and state, and the rest of that call's row is not compared.
"""

import argparse
import sys
import time
from functools import partial
from itertools import groupby, product

import numpy as np
import onnxruntime as ort
import torch
from rich.box import SIMPLE
from rich.table import Column, Table

from rill.bundle import PRECISIONS
from rill.export.display import Display, print_line, print_table
from rill.export.flags import add_jobs, add_json, write_json
from rill.export.matrix.check import Difference, NetworkJob, Result, check
from rill.export.matrix.models import CELLS, Configuration, all_configurations, quick_configurations
from rill.export.parity.compare import TOLERANCE
from rill.export.pool import run_all

CHARACTERS, QUICK_CHARACTERS = 10_000, 200  # greedy characters of each configuration, at least


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if any configuration failed, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    configurations = quick_configurations() if options.quick else all_configurations()
    characters = QUICK_CHARACTERS if options.quick else CHARACTERS
    started = time.monotonic()
    try:
        results = _check_all(configurations, characters, options.seed, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    _print_results(results)
    _print_summary(results, seconds)
    if options.json:
        versions = {"onnxruntime": ort.__version__, "torch": torch.__version__, "numpy": np.__version__}
        report = {**versions, "seed": options.seed, "tolerance": TOLERANCE, "seconds": round(seconds, 1)}
        report["configurations"] = [result.to_json() for result in results]
        if not write_json(options.json, report):
            return 1
    return 1 if any(result.failures for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rill.export.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"every pair of values once, {QUICK_CHARACTERS} greedy characters each"
    )
    add_jobs(parser, "number of processes that compare")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, states and texts (default: 0)")
    add_json(parser, "write every configuration's figures to this file")
    return parser


def _check_all(configurations: list[Configuration], characters: int, seed: int, processes: int) -> list[Result]:
    """Compare all configurations, network by network; returns the results in their order."""
    jobs = [NetworkJob(network, list(group)) for network, group in groupby(configurations, lambda each: each.network)]
    torch.set_num_threads(1)  # small models gain nothing from threads, and lose much where cores are shared
    with Display("networks", len(jobs), _has_failures) as display:
        found = run_all(jobs, partial(check, characters=characters, seed=seed), _died, processes, display)
    by_configuration = {result.configuration: result for results in found for result in results}
    return [by_configuration[configuration] for configuration in configurations]


def _has_failures(results: list[Result]) -> bool:
    return any(result.failures for result in results)


def _died(job: NetworkJob, seconds: float, reason: str) -> list[Result]:
    return [Result(configuration, errors=[reason], seconds=seconds) for configuration in job.configurations]


def _print_results(results: list[Result]) -> None:
    """Print the worst differences of each cell and precision to standard output."""
    table = Table(
        Column("model", no_wrap=True), box=SIMPLE, caption="the worst |difference| and its share of 1e-5 + 1e-5 |x|"
    )
    outputs = ("logits", "states", "serving states", "logprobs")
    for heading in ("number", *outputs, "share", "greedy", "excused", "failed"):
        table.add_column(heading, justify="right")
    for kind in product(CELLS, PRECISIONS):
        of_kind = [result for result in results if result.kind == kind]
        if of_kind:
            table.add_row(
                " ".join(kind),
                str(len(of_kind)),
                *(f"{Difference.worst(result.worst(output) for result in of_kind).largest:.1e}" for output in outputs),
                f"{Difference.worst(result.worst() for result in of_kind).share:.0%}",
                f"{sum(result.characters for result in of_kind):,}",
                str(sum(result.excused_characters + result.excused_steps for result in of_kind)),
                str(sum(bool(result.failures) for result in of_kind)),
            )
    print_table(table)


def _print_summary(results: list[Result], seconds: float) -> None:
    """Print the worst configuration, all failures and the totals."""
    worst = max(results, key=lambda result: result.worst().share)
    print_line(f"worst configuration: {worst.configuration}")
    for output, by_reference in worst.differences.items():
        for reference, difference in by_reference.items():
            print_line(f"    {output} against {reference}: {difference}")
    for result in results:
        for failure in result.failures:
            print_line(f"FAILED: {result.configuration}: {failure}")
    networks = len({result.configuration.network for result in results})
    characters, excused, excused_steps, failed = (
        sum(result.characters for result in results),
        sum(result.excused_characters for result in results),
        sum(result.excused_steps for result in results),
        sum(bool(result.failures) for result in results),
    )
    print_line(
        f"{len(results):,} configurations of {networks} models in {seconds:.0f} s, {failed} failed; worst difference "
        f"{Difference.worst(result.worst() for result in results)}; {characters:,} greedy characters ({excused} "
        f"excused); {excused_steps} steps excused",
    )


if __name__ == "__main__":
    sys.exit(main())
