"""The way from a run to a verified bundle on disk."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rill.bundle import Bundle, BundleError, read_bundle
from rill.export.errors import LossError
from rill.export.graphs.build import build_bundle
from rill.export.jobs import bundle_folder_name, require_bundle_name
from rill.export.lock import exclusive
from rill.export.parity.int8_loss import MAX_LOSS, Loss, measure_loss
from rill.export.parity.verify import Parity, verify
from rill.export.write import is_replaceable, manifest_of, remove_leftovers, write_bundle
from rill.train.errors import RunError
from rill.train.record.run import Run, load_run

OnProgress = Callable[[str], object]  # is called with the step that begins, in a few words


def _ignore(step: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Exported:
    """The result of exporting one run."""

    folder: Path
    size: int  # bytes of all graphs, and of the n-gram tables
    parity: Parity
    unchanged: bool  # an identical bundle was already there
    loss: Loss | None = None  # of int8


def export_run(
    run_folder: str | Path,
    out: str | Path,
    precision: str = "fp32",
    force: bool = False,
    check: bool = False,
    allow_loss: bool = False,
    on_progress: OnProgress = _ignore,
) -> Exported:
    """Export a run folder under its own name; see `export_loaded`. Raises RunError for a run that cannot be read."""
    on_progress("reading the run")
    summary = _training_summary(Path(run_folder))  # first: if training ends now, the weights may be other ones
    run, name = load_run(run_folder), Path(run_folder).resolve().name
    return export_loaded(run, name, out, precision, force, check, allow_loss, on_progress, summary)


def export_loaded(
    run: Run,
    name: str,
    out: str | Path,
    precision: str = "fp32",
    force: bool = False,
    check: bool = False,
    allow_loss: bool = False,
    on_progress: OnProgress = _ignore,
    summary: dict[str, Any] | None = None,
) -> Exported:
    """Export a run to the bundle `out`/NAME (int8: `out`/NAME-int8), verified before it is written.

    With `check` nothing is written: the bundle must exist and equal the run's, and is verified as it is on disk.
    `summary` describes the training; without it, the run's summary.json does.
    Raises UnsupportedError for a run that cannot be exported, ParityError if a graph differs from the model,
    LossError if int8 loses too much and `allow_loss` is not given, and BundleError if a different bundle is there and
    `force` is not given.
    """
    require_bundle_name(name, precision)
    folder = Path(out) / bundle_folder_name(name, precision)
    on_progress("building the graphs")
    summary = _training_summary(run.folder) if summary is None else summary
    bundle = build_bundle(run, folder.name, precision)
    if check:
        bundle = _read_same(folder, bundle)
    elif folder.exists():
        with exclusive(folder):
            _holds(folder, bundle, force)  # refuse before the long work
    on_progress("comparing with PyTorch")
    parity, loss = verify(bundle, run), None
    if precision != "fp32":
        on_progress("measuring the loss")
        loss = measure_loss(run, bundle, build_bundle(run, folder.name))
        if loss.loss > MAX_LOSS and not allow_loss:
            raise LossError(
                f"{precision} costs {loss.loss:.4f} bits per character ({loss.bits_per_char:.4f} instead of "
                f"{loss.bits_per_char_fp32:.4f}, {loss.text}), more than {MAX_LOSS}; export it with --allow-loss, or "
                "as fp32"
            )
    report = parity.report() | ({"loss": asdict(loss)} if loss else {})
    unchanged = check
    if not check:
        on_progress("writing")
        with exclusive(folder):
            unchanged = _holds(folder, bundle, force)  # again: another process may have exported in between
            if unchanged:
                remove_leftovers(folder)
            else:
                write_bundle(bundle, manifest_of(bundle, summary, report), folder)
    return Exported(folder, _size(bundle), parity, unchanged, loss)


def _size(bundle: Bundle) -> int:
    return sum(map(len, (*bundle.graphs.values(), *bundle.constrained.values(), bundle.ngrams)))


def _holds(folder: Path, bundle: Bundle, force: bool) -> bool:
    """Whether `folder` already holds `bundle`.

    Raises BundleError for something else, unless `force` may replace it, or only the graphs for texts that must match
    are missing or others: such a bundle is the same model, exported by an earlier version.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not is_replaceable(folder):  # never deleted, not even by --force
        raise BundleError(f"{folder} exists and is not a bundle; give another --out")
    try:
        found = read_bundle(folder)
    except BundleError:
        if not force:
            raise BundleError(f"{folder} holds a damaged or an older bundle; replace it with --force") from None
        return False
    if found == bundle:
        return True
    if not force and replace(found, constrained=bundle.constrained) != bundle:
        raise BundleError(f"{folder} holds a different bundle; replace it with --force")
    return False


def _read_same(folder: Path, bundle: Bundle) -> Bundle:
    """Read the bundle in `folder`, which must equal `bundle` to the byte. Raises BundleError."""
    if not folder.exists():
        raise BundleError(f"{folder} is missing: export the run")
    on_disk = read_bundle(folder)
    if on_disk != bundle:
        raise BundleError(f"{folder} differs from its run: export it again with --force")
    return on_disk


def _training_summary(folder: Path) -> dict[str, Any]:
    """Read the run's summary.json; empty if the training has not finished."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); repair or remove it") from None
    if not isinstance(summary, dict):
        raise RunError(f"{path} is not a JSON object; repair or remove it")
    return summary
