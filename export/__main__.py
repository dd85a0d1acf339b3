"""Export run folders as verified bundles.

    python -m export runs/shakespeare --out bundles/
    python -m export runs/* --out bundles/ --force --json report.json

Every bundle is checked with ONNX Runtime against PyTorch before it is written; one that differs is not written.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from export.export import export_run
from export.verify import Parity


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if any run failed."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # verification takes steps of one character: threads only wait for one another
    if options.json and not options.json.parent.is_dir():
        print(f"error: --json {options.json}: there is no folder {options.json.parent}", file=sys.stderr)
        return 2
    seen: dict[str, Path] = {}
    rows = []
    for run in options.run:
        folder = Path(run).resolve()
        first = seen.setdefault(folder.name, folder)
        rows.append(_export(run, options.out, options.force, None if first == folder else first))
    _print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="a run folder made by python -m train")
    parser.add_argument(
        "--out", required=True, type=Path, help="where the bundles go, each a folder named like its run"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there and differs")
    parser.add_argument("--json", type=Path, metavar="F", help="write the closing table to this file too")
    return parser


def _export(run: str, out: Path, force: bool, namesake: Path | None) -> dict[str, Any]:
    """Export one run; whatever goes wrong with it is told and does not stop the others."""
    started = time.monotonic()
    row: dict[str, Any] = {"run": run, "bundle": None, "bytes": None, "difference": None, "parity": None}
    try:
        if namesake:
            raise ValueError(
                f"{namesake} has the same name, and so would its bundle; give them different --out folders"
            )
        exported = export_run(run, out, force)
        print(f"{run}: {_in_words(exported.parity)}", flush=True)
        row |= {
            "bundle": str(exported.folder),
            "bytes": exported.size,
            "difference": exported.parity.worst_difference,
            "parity": exported.parity.report(),
            "status": "unchanged" if exported.unchanged else "ok",
        }
    except (ValueError, OSError) as error:
        print(f"error: {run}: {error}", file=sys.stderr)
        row["status"] = "failed"
    except Exception as error:  # not foreseen: ONNX Runtime's, PyTorch's, ours
        print(f"error: {run}: {type(error).__name__}: {error}", file=sys.stderr)
        row["status"] = "failed"
    return row | {"seconds": round(time.monotonic() - started, 1)}


def _in_words(parity: Parity) -> str:
    characters = parity.greedy_characters + parity.sampled_characters + parity.filtered_characters + parity.choices
    words = (
        f"as PyTorch: logits and states within {parity.worst_difference:.1e} over {parity.rows} rows "
        f"({parity.excused_rows} excused)"
    )
    return f"{words}, {characters:,} characters equal ({parity.excused_characters} excused)" if characters else words


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(Column("run", overflow="fold"), Column("bundle", overflow="fold"))
    for heading in ("size", "worst parity difference", "seconds", "status"):
        table.add_column(heading, no_wrap=heading == "status")
    for row in rows:
        figures = ["-"] * 3
        if row["parity"]:
            figures = [row["bundle"], f"{row['bytes'] / 1e6:.2f} MB", f"{row['difference']:.1e}"]
        table.add_row(row["run"], *figures, f"{row['seconds']:.1f}", row["status"])
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
