"""Export run folders as verified bundles.

    python -m rill.export runs/shakespeare --out bundles/
    python -m rill.export runs/* --out bundles/ --precision fp32 int8 --jobs 2 --json report.json
    python -m rill.export runs/* --out bundles/ --check
    python -m rill.export --from-state-dict weights.pt --vocabulary symbols.json --name mine --out bundles/

Every bundle is checked with ONNX Runtime against PyTorch before it is written; one that differs is not written.
"""

import argparse
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from rill.bundle import PRECISIONS
from rill.export.display import Display, print_table
from rill.export.foreign.files import ForeignError
from rill.export.foreign.run import RESETS, UPDATES, bundle_name
from rill.export.jobs import Checkpoint, Job
from rill.export.pipeline import bundle_folder
from rill.export.pool import run_jobs
from rill.train.record.files import replace_file

FOREIGN_OPTIONS = ("vocabulary", "rename", "name", "reset", "update")


class UsageError(ValueError):
    """Options that make no sense together or point nowhere; found before any work."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 1 if any run failed, 2 for wrong usage, 130 if interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be shown is no reason to stop
    options = _parser().parse_args(arguments)
    try:
        _require_sense(options)
        _require_places(options)
        jobs = _jobs(options)
    except (UsageError, ForeignError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # verification takes steps of one character: threads only wait for one another
    try:
        with Display(len(jobs)) as display:
            rows = run_jobs(jobs, options.jobs, display)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print_table(rows)
    if options.json:
        report = json.dumps([row.to_json() for row in rows], indent=1) + "\n"
        try:
            replace_file(options.json.resolve(), report.encode())
        except OSError as error:
            print(f"error: --json {options.json}: {error}", file=sys.stderr)
            return 1
    return 1 if any(row.status == "failed" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rill.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help="run folders made by python -m rill.train")
    parser.add_argument(
        "--out", required=True, type=Path, help="where the bundles go, each a folder named like its run"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="fp32 (the default), int8, or both"
    )
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="export in so many processes")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there and differs")
    parser.add_argument("--check", action="store_true", help="write nothing: verify the bundles that are there")
    parser.add_argument("--allow-loss", action="store_true", help="take int8 bundles that predict clearly worse")
    parser.add_argument("--json", type=Path, metavar="F", help="write the closing table to this file too")
    foreign = parser.add_argument_group("a checkpoint that Rill did not train")
    foreign.add_argument("--from-state-dict", type=Path, metavar="FILE", help="PyTorch weights: .pt or .safetensors")
    foreign.add_argument("--vocabulary", type=Path, metavar="FILE", help="a JSON list of the characters in id order")
    foreign.add_argument(
        "--rename", nargs="+", action="extend", metavar="OLD=NEW", help="our names for tensors that are not found"
    )
    foreign.add_argument("--name", help="the bundle's name; otherwise the file's, without its ending")
    foreign.add_argument("--reset", choices=RESETS, help="where a GRU's reset gate acts (after: as nn.GRU)")
    foreign.add_argument("--update", choices=UPDATES, help="what a GRU's update gate of 1 does (keeps: as nn.GRU)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _require_sense(options: argparse.Namespace) -> None:
    if options.from_state_dict is None:
        if not options.run:
            raise UsageError("name a RUN to export, or a checkpoint with --from-state-dict")
        for name in FOREIGN_OPTIONS:
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} is about a checkpoint; use it with --from-state-dict")
    elif options.run:
        raise UsageError("give either RUN folders or --from-state-dict, not both")
    elif options.vocabulary is None:
        raise UsageError("--from-state-dict needs --vocabulary: the weights do not say which characters they are about")
    if options.check and options.force:
        raise UsageError("--check writes nothing, so there is nothing for --force to do")


def _require_places(options: argparse.Namespace) -> None:
    """Raise UsageError if --out or --json could not be written."""
    if options.json and not options.json.parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no folder {options.json.parent}")
    if options.json and options.json.exists() and not options.json.is_file():
        raise UsageError(f"--json {options.json} is there and is not a file")
    if options.check:
        return
    existing = options.out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"--out {options.out}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--out {options.out}: no permission to write into {existing}")


def _jobs(options: argparse.Namespace) -> list[Job]:
    """A job for each run and precision; a run that was named twice is exported once."""
    if options.from_state_dict:
        sources = [_foreign_job(options)]
    else:
        runs: dict[Path, str] = {}
        for run in options.run:
            runs.setdefault(Path(os.path.realpath(run)), run)
        sources = [Job(run, folder.name, options.out) for folder, run in runs.items()]
    jobs: list[Job] = []
    taken: dict[str, str] = {}  # by the bundle's name: the first run that it is of
    for source in sources:
        for precision in dict.fromkeys(options.precision):
            first = taken.setdefault(bundle_folder(source.name, precision), source.source)
            problem = f"the bundle of {first} has the same name; give them different --out folders"
            jobs.append(
                replace(
                    source,
                    precision=precision,
                    force=options.force,
                    check=options.check,
                    allow_loss=options.allow_loss,
                    problem="" if first == source.source else problem,
                )
            )
    return jobs


def _foreign_job(options: argparse.Namespace) -> Job:
    rename = {}
    for pair in options.rename or []:
        old, equals, new = pair.partition("=")
        if not (old and equals):
            raise UsageError(f"--rename takes OLD=NEW, not {pair!r}")
        rename[old] = new
    path = options.from_state_dict
    name = bundle_name(path.stem if options.name is None else options.name)
    checkpoint = Checkpoint(path, options.vocabulary, rename, options.reset or "after", options.update or "keeps")
    return Job(str(path), name, options.out, checkpoint=checkpoint)
