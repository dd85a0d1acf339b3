"""Export several runs: in processes, with a line for each result and a closing table."""

import sys
from collections.abc import Sequence

import torch
from rich.table import Column, Table
from rich.text import Text

from rill.export.display import Display, print_line, print_table
from rill.export.jobs import Job
from rill.export.parity.verify import Parity
from rill.export.pool import run_all
from rill.export.results import Row, run_job


def export_all(jobs: Sequence[Job], processes: int) -> list[Row]:
    """Run all jobs and print what became of them; returns their rows. Raises KeyboardInterrupt."""
    torch.set_num_threads(1)  # small models gain nothing from threads, and lose much where cores are shared
    with Display("exports", len(jobs), print_row) as display:
        rows = run_all(jobs, run_job, _died, processes, display)
    print_rows(rows)
    return rows


def _died(job: Job, seconds: float, reason: str) -> Row:
    return Row(job, seconds, error=reason)


def print_row(row: Row) -> bool:
    """Print the lines of one result: notes and parity, or the error on standard error. Returns whether it failed."""
    if row.exported is None:
        print_line(f"error: {row.job}: {row.error}", sys.stderr)
        return True
    for note in row.notes:
        print_line(f"{row.job}: {note}")
    model = "PyTorch" if row.job.precision == "fp32" else "the rounded model"
    print_line(f"{row.job}: matches {model}: {_in_words(row.exported.parity)}")
    return False


def print_rows(rows: Sequence[Row]) -> None:
    """Print the closing table to standard output."""
    measured = any(loss is not None for row in rows for loss in row.bits_per_char)
    table = Table(Column("run", overflow="fold"), "precision", Column("bundle", overflow="fold"))
    for heading in ("size", "worst parity difference", *(["bits per character"] if measured else []), "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        cells = [row.job.source, row.job.precision, "-", "-", "-"]
        if row.exported:
            difference = row.exported.parity.worst_difference
            cells[2:] = [str(row.exported.folder), f"{row.exported.size / 1e6:.2f} MB", f"{difference:.1e}"]
        if measured:
            cells.append(_loss(*row.bits_per_char))
        table.add_row(*map(Text, cells), f"{row.seconds:.1f}", row.status)
    print_table(table)


def _loss(bits: float | None, fp32: float | None) -> str:
    if bits is None or fp32 is None:
        return "-"
    return f"{bits:.4f} ({bits - fp32:+.4f})"


def _in_words(parity: Parity) -> str:
    characters = parity.greedy_characters + parity.sampled_characters + parity.filtered_characters + parity.choices
    words = (
        f"logits and states within {parity.worst_difference:.1e} over {parity.rows} rows "
        f"({parity.excused_rows} excused)"
    )
    return f"{words}, {characters:,} characters equal ({parity.excused_characters} excused)" if characters else words
