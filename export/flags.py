"""The flags that `rill export` and the parity matrix share: --jobs and --json."""

import argparse
import json
import sys
from pathlib import Path

from rill.files import output_file, replaced


def add_jobs(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --jobs N; `meaning` is its help."""
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help=f"{meaning} (default: 1)")


def add_json(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --json F, a file that can be written; `meaning` is its help."""
    parser.add_argument("--json", type=output_file, metavar="F", help=meaning)


def write_json(path: Path, report: object) -> bool:
    """Write --json's file; returns whether that worked, and says on standard error why not."""
    try:
        with replaced(path) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        print(f"error: --json {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
