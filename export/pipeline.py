"""From a run to a verified bundle."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rill.bundle import Bundle, BundleError, read_bundle
from rill.export.graphs.build import UnsupportedError, build_bundle
from rill.export.lock import exclusive
from rill.export.parity.int8_loss import MOST_LOSS, Loss, LossError, measure_loss
from rill.export.parity.verify import Parity, verify
from rill.export.write import is_replaceable, manifest_of, remove_leftovers, write_bundle
from rill.train.record.run import Run, RunError, load_run

Tell = Callable[[str], object]  # is called with what is being done, in a few words


def _nobody(doing: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Exported:
    """What became of one run."""

    folder: Path
    size: int  # bytes of all graphs
    parity: Parity
    unchanged: bool  # an identical bundle was there already
    loss: Loss | None = None  # of int8


def export_run(
    run_folder: str | Path,
    out: str | Path,
    precision: str = "fp32",
    force: bool = False,
    check: bool = False,
    allow_loss: bool = False,
    tell: Tell = _nobody,
) -> Exported:
    """Export a run folder under its own name, as `export_loaded` does. Raises RunError for one that cannot be used."""
    tell("reading the run")
    run = load_run(run_folder)
    return export_loaded(run, Path(run_folder).resolve().name, out, precision, force, check, allow_loss, tell)


def export_loaded(
    run: Run,
    name: str,
    out: str | Path,
    precision: str = "fp32",
    force: bool = False,
    check: bool = False,
    allow_loss: bool = False,
    tell: Tell = _nobody,
) -> Exported:
    """Export a run to the bundle `out`/NAME (int8: `out`/NAME-int8), verified before it is written.

    With `check` nothing is written: the bundle must be there and be the run's, and is verified as it is on disk.
    Raises UnsupportedError for a run that cannot be exported, ParityError if the graphs do not do what the model does,
    LossError if int8 costs too much and `allow_loss` is not given, and BundleError if a different bundle is there and
    `force` is not given.
    """
    _require_name(name)
    folder = Path(out) / bundle_folder(name, precision)
    tell("building the graphs")
    summary = _training_summary(run)
    bundle = build_bundle(run, folder.name, precision)
    if check:
        bundle = _read_same(folder, bundle)
    elif folder.exists():
        with exclusive(folder):
            _is_there(folder, bundle, force)  # what is in the way is told before the long work
    tell("comparing with PyTorch")
    parity, loss = verify(bundle, run), None
    if precision != "fp32":
        tell("measuring what rounding costs")
        loss = measure_loss(run, bundle, build_bundle(run, folder.name))
        if loss.loss > MOST_LOSS and not allow_loss:
            raise LossError(
                f"{precision} costs {loss.loss:.4f} bits per character ({loss.bits_per_char:.4f} instead of "
                f"{loss.bits_per_char_fp32:.4f}, {loss.text}), more than {MOST_LOSS}; export it with --allow-loss, or "
                "as fp32"
            )
    report = parity.report() | ({"loss": asdict(loss)} if loss else {})
    unchanged = check
    if not check:
        tell("writing")
        with exclusive(folder):
            unchanged = _is_there(folder, bundle, force)  # again: another process may have exported meanwhile
            if unchanged:
                remove_leftovers(folder)
            else:
                write_bundle(bundle, manifest_of(bundle, summary, report), folder)
    return Exported(folder, sum(map(len, bundle.graphs.values())), parity, unchanged, loss)


def _require_name(name: str) -> None:
    """Raise UnsupportedError for the root folder's name and for bytes that are no text."""
    if not name:
        raise UnsupportedError("the root folder has no name that a bundle could have; move the run into a folder")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"the name {name!r} is not UTF-8, and a bundle's must be; rename the run") from None


def bundle_folder(name: str, precision: str) -> str:
    """What the bundle of the run NAME is called."""
    return name if precision == "fp32" else f"{name}-{precision}"


def _is_there(folder: Path, bundle: Bundle, force: bool) -> bool:
    """Whether `folder` already holds `bundle`. Raises BundleError for something else, unless `force` may replace it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not is_replaceable(folder):
        raise BundleError(f"{folder} exists and is not a bundle; give another --out")  # never deleted, --force or not
    try:
        if read_bundle(folder) == bundle:
            return True
    except BundleError:
        if not force:
            raise BundleError(f"{folder} holds a damaged or an older bundle; replace it with --force") from None
    if not force:
        raise BundleError(f"{folder} holds a different bundle; replace it with --force")
    return False


def _read_same(folder: Path, bundle: Bundle) -> Bundle:
    """The bundle in `folder`, which must be `bundle` to the byte. Raises BundleError."""
    if not folder.exists():
        raise BundleError(f"{folder} is missing: export the run")
    there = read_bundle(folder)
    if there != bundle:
        raise BundleError(f"{folder} differs from its run: export it again with --force")
    return there


def _training_summary(run: Run) -> dict[str, Any]:
    """What summary.json says of the training, or nothing if the run was never finished."""
    path = run.folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); mend it or remove it") from None
    if not isinstance(summary, dict):
        raise RunError(f"{path} is not a JSON object; mend it or remove it")
    return summary
