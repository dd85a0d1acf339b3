"""Report the results of runs beside published results and targets.

    rill train report runs/*
    rill train report runs/* --markdown
    rill train report runs/* --json report.json

Perplexity is exp of the last training loss; validation losses are nats per
character. A run that has not finished is shown as of its last evaluation. Below
the table are the commands that repeat the runs. The exit status is 1 if a
folder is not a run.
"""

import argparse
import io
import json
import math
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rill.files import output_file, printed_beside, replaced
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import ConfigError, TrainError
from rill.train.options import option_of, words_of
from rill.train.record.display import perplexity
from rill.train.record.folder import CONFIG, METRICS, SUMMARY
from rill.train.record.recipe import Recipe, load_recipe

PIPED_WIDTH = 240  # columns, if the output is not a terminal
FIGURES = {  # name in summary.json (except the first and `seconds_per_epoch`): heading and format
    "perplexity": ("perplexity", ".3f"),
    "val_loss": ("validation loss", ".4f"),
    "bits_per_char": ("bits/char", ".3f"),
    "val_accuracy": ("accuracy", ".4f"),
    "seconds": ("seconds", ",.1f"),
    "seconds_per_epoch": ("s/epoch", ",.3f"),
    "chars_per_second": ("characters/s", ",.0f"),
}
FIGURE_HEADINGS = {heading for heading, _ in FIGURES.values()}
COLUMNS = ("run", "recipe", *list(FIGURES)[:4], "published", "target", *list(FIGURES)[4:])


@dataclass(frozen=True)
class Row:
    """One run: those FIGURES that it has, and the published result and the targets of its recipe."""

    run: str
    recipe: str
    finished: bool
    figures: dict[str, float]
    published: dict[str, str]
    target: dict[str, float]
    command: str

    def met(self, name: str) -> bool | None:
        """Whether the target `name` is met; None if the run has no such figure."""
        if name not in self.figures:
            return None
        value, target = self.figures[name], self.target[name]
        return value >= target if name == "val_accuracy" else value <= target


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 1 a folder is not a run, 2 the JSON file cannot be written."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    rows = []
    for folder in options.runs:
        try:
            rows.append(read_row(folder))
        except TrainError as error:
            print(error, file=sys.stderr)
    status = 0 if len(rows) == len(options.runs) else 1
    rows.sort(key=lambda row: (row.recipe, row.run))
    if options.json:
        try:
            with replaced(options.json) as file:
                file.write((json.dumps([_to_json(row) for row in rows], indent=1) + "\n").encode())
        except OSError as error:
            print(f"error: --json {options.json}: {error.strerror}", file=sys.stderr)
            status = 2
    if rows:
        with printed_beside(options.json):
            (_print_markdown if options.markdown else _print_table)(rows)
    return status


def read_row(folder: Path) -> Row:
    """Read a run folder, finished or not. Raises ConfigError if it is not a run."""
    config = _read_object(folder / CONFIG)
    if not all(isinstance(config.get(section), dict) for section in ("model", "training")):
        raise ConfigError(f"{folder} is not a run: it has no readable {CONFIG}")
    training = config["training"]
    last, summary = _last_line(folder / METRICS), _read_object(folder / SUMMARY)
    measured = last | summary
    if "train_loss" in measured:
        measured["perplexity"] = perplexity(measured["train_loss"])
    if training.get("epochs") is not None and last.get("epoch"):
        measured["seconds_per_epoch"] = measured["seconds"] / last["epoch"]
    recipe = _recipe(folder, training)
    return Row(
        run=str(folder),
        recipe=training.get("recipe", ""),
        finished=bool(summary),
        figures={name: measured[name] for name in FIGURES if measured.get(name) is not None},
        published=recipe.published if recipe else {},
        target=recipe.target if recipe else {},
        command=_command(folder, config, recipe),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or incomplete, as after a kill."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _last_line(path: Path) -> dict[str, Any]:
    """Read the last complete line of metrics.jsonl; an empty object if there is none."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):  # cut off
            continue
    return {}


def _recipe(folder: Path, training: dict[str, Any]) -> Recipe | None:
    """The run's recipe, if it has one that still exists."""
    if not training.get("recipe"):
        return None
    try:
        return load_recipe(training["recipe"])
    except ConfigError as error:
        print(f"{folder}: {error}; its command is shown without the recipe", file=sys.stderr)
        return None


def _command(folder: Path, config: dict[str, Any], recipe: Recipe | None) -> str:
    """The command that repeats the run: its recipe, and an option for each value that differs from the recipe."""
    stored = config["model"] | config["training"]
    options = [declared for section in (TrainingConfig, ModelConfig) for declared in fields(section)]
    start = _read_object(Path(stored["start"], CONFIG)) if stored.get("start") else {}
    base = {declared.name: declared.default for declared in options} | start.get("model", {})
    words = ["rill", "train"]
    if recipe:
        recipe = recipe if stored.get("ngrams", 1) > 1 else recipe.without_tables()
        base |= recipe.model | recipe.training
        words += ["--recipe", recipe.name]
    for declared in options:
        name = declared.name
        value = stored.get(name, declared.default)  # what config.json omits
        value = tuple(value) if isinstance(value, list) else value
        if name == "recipe" or option_of(declared) is None or value is None or value == base[name]:
            continue
        words += words_of(declared, value)
    if start and config.get("vocabulary") != start.get("vocabulary"):
        words.append("--extend-vocabulary")
    return shlex.join([*words, "--out", str(folder)])


def _cells(rows: list[Row]) -> dict[str, list[str]]:
    """The non-empty columns, by heading."""
    columns = {}
    for name in COLUMNS:
        heading = FIGURES[name][0] if name in FIGURES else name
        cells = [_cell(row, name) for row in rows]
        if any(cells):
            columns[heading] = cells
    return columns


def _cell(row: Row, name: str) -> str:
    match name:
        case "run":
            return row.run if row.finished else f"{row.run} (unfinished)"
        case "recipe":
            return row.recipe
        case "published":
            return "\n".join(row.published[key] for key in ("result", "source") if key in row.published)
        case "target":
            return "\n".join(_target(row, target) for target in row.target)
    return format(row.figures[name], FIGURES[name][1]) if name in row.figures else ""


def _target(row: Row, name: str) -> str:
    verdict = {True: "met", False: "not met", None: "not measured"}[row.met(name)]
    relation = "≥" if name == "val_accuracy" else "≤"
    return f"{FIGURES[name][0]} {relation} {row.target[name]:g}: {verdict}"


def _print_table(rows: list[Row]) -> None:
    """Print the table and the commands, each on one line; long cells are folded, never cut off."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    table = Table()
    columns = _cells(rows)
    for heading in columns:
        table.add_column(heading, overflow="fold", justify="right" if heading in FIGURE_HEADINGS else "left")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))  # literally: no markup
    console.print(table)
    for row in rows:
        console.print(Text(row.command), soft_wrap=True)


def _print_markdown(rows: list[Row]) -> None:
    """Print a GitHub Markdown table, and the commands as a code block."""
    columns = _cells(rows)
    lines = [tuple(columns), tuple("---:" if heading in FIGURE_HEADINGS else "---" for heading in columns)]
    lines += zip(*columns.values(), strict=True)
    for cells in lines:
        print("|", " | ".join(cell.replace("|", "\\|").replace("\n", "; ") for cell in cells), "|")
    print("\n```sh", *(row.command for row in rows), "```", sep="\n")


def _to_json(row: Row) -> dict[str, Any]:
    """The row for --json; an infinite perplexity, which JSON cannot express, is null."""
    document = asdict(row)
    document["figures"] = {name: value if math.isfinite(value) else None for name, value in row.figures.items()}
    document["target"] = {name: {"value": value, "met": row.met(name)} for name, value in row.target.items()}
    return document


def _parser() -> argparse.ArgumentParser:
    usage, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="rill train report",
        description=usage,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--markdown", action="store_true", help="print a GitHub Markdown table instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
