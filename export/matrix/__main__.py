"""The parity matrix: every kind of model in every precision, in several batches and times, with random weights.

    python -m rill.export.matrix              the whole matrix: a quarter of an hour
    python -m rill.export.matrix --quick      as few configurations as let every two values of any two axes meet

Each configuration is run over chained calls from random states, with ONNX Runtime on the CPU. In fp32 the portable and
the serving graphs must be within 1e-5 + 1e-5 |x| of PyTorch in float32 and of NumPy in float64
(`rill.export.parity.float64`), each of which chains states of its own; no row is excused. The serving graphs show no
logits: the log-probabilities of forced characters stand for them. In int8 the portable graph is held likewise against
the models with the rounded weights, and every step of the serving graphs against the emulation
(`rill.export.parity.emulation`) from the same state. A GRU that resets before the product quantizes what nobody sees: a
step that is a whole unit of that off is excused, and counted.

Then the serving graph writes greedily, its own text from its own states, and PyTorch, or in int8 the emulation, must
choose the same characters. A choice within 1e-4 of its boundary is excused, and counted; that row's text goes on from
the reference's character and state, and what it wrote after the choice in the same call is not compared.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import groupby, product
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from rill.bundle import PRECISIONS
from rill.export.display import say, say_table
from rill.export.matrix.check import Difference, Result, check
from rill.export.matrix.models import CELLS, Configuration, all_configurations, quick_configurations
from rill.export.parity.compare import TOLERANCE
from rill.train.record.files import replace_file

CHARACTERS, QUICK_CHARACTERS = 10_000, 200  # greedy, at least, of each configuration


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 1 if any configuration failed, 2 for wrong usage, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        print(f"error: --json {options.json} must be a file in a folder that is there", file=sys.stderr)
        return 2
    configurations = quick_configurations() if options.quick else all_configurations()
    characters = QUICK_CHARACTERS if options.quick else CHARACTERS
    began = time.monotonic()
    try:
        results = _check_all(configurations, characters, options.seed, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    _print_table(results)
    _print_summary(results, seconds)
    if options.json:
        versions = {"onnxruntime": ort.__version__, "torch": torch.__version__, "numpy": np.__version__}
        report = {**versions, "seed": options.seed, "tolerance": TOLERANCE, "seconds": round(seconds, 1)}
        report["configurations"] = [result.to_json() for result in results]
        try:
            replace_file(options.json.resolve(), (json.dumps(report, indent=1) + "\n").encode())
        except OSError as error:
            print(f"error: --json {options.json}: {error}", file=sys.stderr)
            return 1
    return 1 if any(result.failures for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rill.export.matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"every pair of values once, {QUICK_CHARACTERS} greedy characters each"
    )
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="compare in so many processes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights, states and texts")
    parser.add_argument("--json", type=Path, metavar="F", help="write every configuration's figures to this file")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _check_all(configurations: list[Configuration], characters: int, seed: int, jobs: int) -> list[Result]:
    """Compare all, network by network, with a bar on standard error if that is a terminal."""
    groups = [list(group) for _, group in groupby(configurations, key=lambda each: each.network)]
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    text = TextColumn("configurations  failed: {task.fields[failed]}")
    results: list[Result] = []
    with Progress(text, *columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(configurations), failed=0)
        for done in _checked(groups, characters, seed, jobs):
            results += done
            bar.update(task, completed=len(results), failed=sum(bool(result.failures) for result in results))
    places = {configuration: place for place, configuration in enumerate(configurations)}
    return sorted(results, key=lambda result: places[result.configuration])


def _checked(groups: list[list[Configuration]], characters: int, seed: int, jobs: int) -> Iterator[list[Result]]:
    """The results of each network's configurations as they come."""
    if jobs == 1:
        _prepare()
        for group in groups:
            yield check(group, characters, seed)
        return
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the processes' NumPy: threads of theirs would wait for others'
    # Not fork: PyTorch's and ONNX Runtime's threads and locks do not survive one.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        with _interrupts_later():  # the processes, which begin here, leave them to this one
            futures = {pool.submit(check, group, characters, seed): group for group in groups}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                yield [Result(configuration, errors=[str(error)]) for configuration in futures[future]]
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    torch.set_num_threads(1)  # small models gain nothing from threads, and lose much where cores are shared


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """SIGINT waits until the end; processes that begin within never see it."""
    resource_tracker.ensure_running()  # it would begin with the first process, and let SIGINT in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _print_table(results: list[Result]) -> None:
    """Print the worst differences of each cell and precision to standard output."""
    table = Table(
        Column("model", no_wrap=True), box=SIMPLE, caption="the worst |difference|, and its share of 1e-5 + 1e-5 |x|"
    )
    outputs = ("logits", "states", "serving states", "logprobs")
    for heading in ("number", *outputs, "share", "greedy", "excused", "failed"):
        table.add_column(heading, justify="right")
    for kind in product(CELLS, PRECISIONS):
        those = [result for result in results if result.kind == kind]
        if those:
            table.add_row(
                " ".join(kind),
                str(len(those)),
                *(f"{Difference.worst(result.worst(output) for result in those).largest:.1e}" for output in outputs),
                f"{Difference.worst(result.worst() for result in those).share:.0%}",
                f"{sum(result.characters for result in those):,}",
                str(sum(result.excused_characters + result.excused_steps for result in those)),
                str(sum(bool(result.failures) for result in those)),
            )
    say_table(table)


def _print_summary(results: list[Result], seconds: float) -> None:
    """Print the worst configuration, all failures and the totals."""
    worst = max(results, key=lambda result: result.worst().share)
    say(f"worst cell: {worst.configuration}", sys.stdout)
    for output, by_reference in worst.differences.items():
        for reference, difference in by_reference.items():
            say(f"    {output} against {reference}: {difference}", sys.stdout)
    for result in results:
        for failure in result.failures:
            say(f"FAILED: {result.configuration}: {failure}", sys.stdout)
    networks = len({result.configuration.network for result in results})
    characters, excused, excused_steps, failed = (
        sum(result.characters for result in results),
        sum(result.excused_characters for result in results),
        sum(result.excused_steps for result in results),
        sum(bool(result.failures) for result in results),
    )
    say(
        f"{len(results):,} configurations of {networks} models in {seconds:.0f} s, {failed} failed; worst difference "
        f"{Difference.worst(result.worst() for result in results)}; {characters:,} greedy characters ({excused} "
        f"excused); {excused_steps} steps excused",
        sys.stdout,
    )


if __name__ == "__main__":
    sys.exit(main())
