"""Export run folders as verified bundles.

    rill export runs/shakespeare --out bundles/
    rill export runs/* --out bundles/ --precision fp32 int8 --jobs 2 --json report.json
    rill export runs/* --out bundles/ --check
    rill export --from-state-dict weights.pt --vocabulary symbols.json --text book.txt --out bundles/
    rill export --from-state-dict prior.pt --tokenizer smiles --start '^' --end '$' --out bundles/

Before a bundle is written, ONNX Runtime runs its graphs and compares them with PyTorch; a bundle that differs is not
written.
"""

import argparse
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

from rill.bundle import PRECISIONS
from rill.export.errors import UnsupportedError
from rill.export.flags import add_jobs, add_json, write_json
from rill.export.jobs import RESETS, UPDATES, Checkpoint, Job, Symbols, require_bundle_name
from rill.files import printed_beside
from rill.train.errors import TrainError
from rill.train.text.tokenizers import tokenizer_of

FOREIGN_OPTIONS = ("vocabulary", "tokenizer", "start", "end", "unknown", "text", "rename", "name", "reset", "update")


class UsageError(ValueError):
    """Options contradict each other or name a path that cannot be used; found before any work."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 if any run failed, 2 for wrong usage, 130 if interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be shown is not a reason to stop
    options = _parser().parse_args(arguments)
    try:
        _require_consistent(options)
        _require_writable(options)
        jobs = _jobs(options)
    except (UsageError, UnsupportedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        # Only now: this loads PyTorch and ONNX Runtime, which --help and wrong usage do not need.
        from rill.export.batch import export_all  # noqa: PLC0415

        with printed_beside(options.json):
            rows = export_all(jobs, options.jobs)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if options.json and not write_json(options.json, [row.to_json() for row in rows]):
        return 1
    return 1 if any(row.status == "failed" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rill export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="*", metavar="RUN", help="run folders made by rill train")
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for the bundles; each becomes a folder named like its run"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="fp32, int8, or both (default: fp32)"
    )
    add_jobs(parser, "number of processes that export")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle that differs")
    parser.add_argument("--check", action="store_true", help="write nothing: verify the existing bundles")
    parser.add_argument("--allow-loss", action="store_true", help="accept int8 bundles that predict clearly worse")
    add_json(parser, "also write the closing table to this file")
    foreign = parser.add_argument_group("a checkpoint that Rill did not train")
    foreign.add_argument(
        "--from-state-dict",
        type=Path,
        metavar="FILE",
        help="PyTorch weights: .safetensors, or a file by torch.save, of which nothing is run",
    )
    foreign.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="JSON: the symbols in id order, as a list, {symbol: id} or {id: symbol} "
        "(default: the vocabulary in the checkpoint)",
    )
    foreign.add_argument(
        "--tokenizer",
        metavar="HOW",
        help="how text becomes symbols: chars, longest (the longest that fits), smiles or 'regex:PATTERN' "
        "(default: chars)",
    )
    foreign.add_argument("--start", metavar="SYMBOL", help="the symbol that is read before every text")
    foreign.add_argument(
        "--end", action="append", metavar="SYMBOL", help="a symbol that ends a text, and padding; may be repeated"
    )
    foreign.add_argument("--unknown", metavar="SYMBOL", help="the symbol of unknown characters; it becomes <unk>")
    foreign.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="a text of the kind that the model was trained on: its bits per character are measured",
    )
    foreign.add_argument(
        "--rename", nargs="+", action="extend", metavar="OLD=NEW", help="Rill's names for tensors it does not recognise"
    )
    foreign.add_argument("--name", help="the bundle's name (default: the file's name without its suffix)")
    foreign.add_argument("--reset", choices=RESETS, help="where a GRU's reset gate acts (after: as in nn.GRU)")
    foreign.add_argument(
        "--update", choices=UPDATES, help="what a GRU's update gate of 1 does to the state (keeps: as in nn.GRU)"
    )
    return parser


def _require_consistent(options: argparse.Namespace) -> None:
    """Raise UsageError if the options contradict each other."""
    if options.from_state_dict is None:
        if not options.run:
            raise UsageError("give at least one RUN to export, or a checkpoint with --from-state-dict")
        for name in FOREIGN_OPTIONS:
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} is about a checkpoint; use it with --from-state-dict")
    elif options.run:
        raise UsageError("give either RUN folders or --from-state-dict, not both")
    elif options.vocabulary is None and options.from_state_dict.suffix == ".safetensors":
        raise UsageError(
            "--from-state-dict needs --vocabulary here: a .safetensors file does not contain the characters"
        )
    if options.check and options.force:
        raise UsageError("--check writes nothing, so --force has no effect; give one of them")


def _require_writable(options: argparse.Namespace) -> None:
    """Raise UsageError if bundles cannot be written to --out."""
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
    """Make a job for each run and precision; a run that is named twice is exported once."""
    if options.from_state_dict:
        sources = [_foreign_job(options)]
    else:
        runs: dict[Path, str] = {}
        for run in options.run:
            runs.setdefault(Path(os.path.realpath(run)), run)
        sources = [Job(run, folder.name, options.out) for folder, run in runs.items()]
    jobs: list[Job] = []
    taken: dict[str, str] = {}  # by the bundle's name: the first run that makes it
    for source in sources:
        for precision in dict.fromkeys(options.precision):
            job = replace(
                source,
                precision=precision,
                force=options.force,
                check=options.check,
                allow_loss=options.allow_loss,
            )
            first = taken.setdefault(job.bundle, job.source)
            if first != job.source:
                problem = f"the bundle of {first} has the same name; give them different --out folders"
                job = replace(job, problem=problem)
            jobs.append(job)
    return jobs


def _foreign_job(options: argparse.Namespace) -> Job:
    rename = {}
    for pair in options.rename or []:
        old, equals, new = pair.partition("=")
        if not (old and equals):
            raise UsageError(f"--rename takes OLD=NEW, not {pair!r}")
        rename[old] = new
    path = options.from_state_dict
    name = path.stem if options.name is None else options.name
    for precision in options.precision:
        require_bundle_name(name, precision)
    reset, update = options.reset or RESETS[0], options.update or UPDATES[0]
    tokenizer = options.tokenizer or Symbols.tokenizer
    if tokenizer == "regex":
        raise UsageError("--tokenizer regex needs its pattern: --tokenizer 'regex:PATTERN', or --tokenizer smiles")
    try:
        tokenizer_of(tokenizer)
    except TrainError as error:
        raise UsageError(str(error)) from None
    symbols = Symbols(tokenizer, options.start or "", tuple(options.end or ()), options.unknown or "")
    checkpoint = Checkpoint(path, options.vocabulary, rename, reset, update, options.text, symbols)
    return Job(str(path), name, options.out, checkpoint=checkpoint)
