"""`rill score --per-line`: each line of a file, or of a pipe that never ends, as a text of its own."""

import argparse
import heapq
import math
import sys
from collections.abc import Iterator
from typing import Any

from rill.cli.flags import connected
from rill.cli.json_output import json_of
from rill.cli.local_server import sigterm_unwinds
from rill.client.lines import LineScore
from rill.client.sync import Client
from rill.text_lines import Line, lines_of

FAILED = 1  # the exit status after a line without a score, unless lines may be skipped


def add_line_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of --per-line."""
    lines = parser.add_argument_group(
        "lines",
        "With --per-line each line is a text of its own. Its score is printed as soon as it is known: the number of "
        "the line, its bits per symbol (-log2 of its probability, by symbol; 0 for an empty line), and the line. With "
        "--json: line, symbols, logprob (in nats), bits_per_symbol and text, or line, text and error.",
    )
    lines.add_argument("--per-line", action="store_true", help="score each line by itself, also of an endless pipe")
    lines.add_argument("--above", type=_bits, metavar="BITS", help="print only lines with more bits per symbol")
    lines.add_argument(
        "--top",
        type=_count,
        metavar="N",
        help="print only the N lines with most bits per symbol, at the end of the input, or on Ctrl-C or SIGTERM",
    )
    lines.add_argument(
        "--no-end", action="store_true", help="do not count the end of a line, where the model has an end symbol"
    )
    lines.add_argument(
        "--skip",
        action="store_true",
        help="go on after a line that cannot be scored, such as one with an unknown character, and name it "
        "(default: stop there, with exit status 1)",
    )


def check_line_options(options: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    if options.per_line:
        if options.per_char:
            raise ValueError("--per-char and --per-line exclude each other")
        if options.include_end:
            raise ValueError("--include-end is about a whole text; --per-line counts ends unless --no-end is given")
        return
    for name in ("above", "top", "no_end", "skip"):
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} goes with --per-line")


def run_per_line(options: argparse.Namespace) -> int:
    """Score lines as they come; returns the exit status. Raises ServerError and ValueError."""
    faulty: dict[int, Line] = {}  # on their way to their place, by number

    def texts() -> Iterator[str]:
        for number, line in enumerate(lines_of(options.text), 1):
            if line.fault:
                faulty[number] = line
            yield "" if line.fault else line.text

    lines = _Lines(options)
    with (
        sigterm_unwinds(),
        connected(options) as connection,
        Client(**connection._asdict()) as client,
        client.score_lines(
            texts(), model=options.model, include_end=False if options.no_end else None, timeout=options.timeout
        ) as scores,
    ):
        try:
            for score in scores:
                fault = faulty.pop(score.line, None)
                if not lines.show(score._replace(text=fault.text, error=fault.fault) if fault else score):
                    return FAILED
        finally:
            lines.show_top()
    return 0


class _Lines:
    """What is printed of the lines."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._name = "standard input" if options.text == "-" else options.text
        self._json, self._skip = options.json, options.skip
        self._above, self._top = options.above, options.top
        self._worst: list[tuple[float, int, LineScore]] = []  # a heap with the best of them first

    def show(self, score: LineScore) -> bool:
        """Print a score now, or keep it for `show_top`; returns whether to go on."""
        if score.error:
            return self._report(score)
        bits = score.bits_per_symbol
        if self._above is not None and not bits > self._above:
            return True
        if self._top is None:
            self._print(score)
        elif self._top:
            push = heapq.heappushpop if len(self._worst) >= self._top else heapq.heappush
            push(self._worst, (bits, -score.line, score))
        return True

    def show_top(self) -> None:
        """Print the lines with most bits, the first of equals first."""
        for *_, score in sorted(self._worst, reverse=True):
            self._print(score)
        self._worst.clear()

    def _report(self, score: LineScore) -> bool:
        if self._json and self._skip:
            self._write({"line": score.line, "text": score.text, "error": score.error})
            return True
        what = f"{self._name}, line {score.line}: {score.error}"
        print(f"{what}; skipped" if self._skip else f"error: {what}; --skip goes on after such lines", file=sys.stderr)
        return bool(self._skip)

    def _print(self, score: LineScore) -> None:
        bits = score.bits_per_symbol
        if self._json:
            self._write(
                {
                    "line": score.line,
                    "symbols": score.symbols,
                    "logprob": score.logprob,
                    "bits_per_symbol": bits,
                    "text": score.text,
                }
            )
        else:
            print(f"{score.line}\t{bits:.4f}\t{_shown(score.text)}", flush=True)

    def _write(self, fields: dict[str, Any]) -> None:
        print(json_of(fields), flush=True)


def _shown(text: str) -> str:
    """Return a line as a terminal may show it: what is not printable as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bits(text: str) -> float:
    bits = float(text)
    if math.isnan(bits):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return bits


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text!r}")
    return count
