"""The last lines of a run: what it is worth, where it is, and what to do with it."""

import shlex
from pathlib import Path
from typing import Any

from rill.train.record.display import perplexity


def outcome(folder: Path, summary: dict[str, Any], held_out: int, best: bool) -> list[str]:
    """The lines for a complete run, from the contents of its summary.json.

    `held_out` is the number of characters held out; `best` says that the kept weights are the best by validation.
    """
    name, path = folder.resolve().name, shlex.quote(str(folder))
    export = f"rill export {path if not path.startswith('-') else f'./{path}'} --out bundles"
    lines = [
        f"{folder}: {summary['steps']:,} steps in {summary['seconds']:,.0f} s,"
        f" {summary['chars_per_second']:,.0f} characters/s",
        _worth(summary, held_out, best),
        f"next: {export}",
    ]
    if "val_accuracy" not in summary:  # a tagger generates nothing
        lines.append(f"      rill generate --bundle {shlex.quote(f'bundles/{name}')}")
    return lines


def _worth(summary: dict[str, Any], held_out: int, best: bool) -> str:
    loss = summary["val_loss"]
    if loss is None:
        loss = summary["train_loss"]
        return f"training loss {loss:.4f} (perplexity {perplexity(loss):.4g}); nothing is held out"
    accuracy = summary.get("val_accuracy")
    figure = f"perplexity {perplexity(loss):.4g}" if accuracy is None else f"accuracy {accuracy:.1%}"
    if summary["val_whole"]:
        measured = f"all {held_out:,} held-out {'characters' if accuracy is None else 'steps'}"
    else:
        measured = f"{summary['val_chars']:,} of {held_out:,} held out"
    return f"{'best ' * best}validation {loss:.4f} ({figure}) on {measured}"
