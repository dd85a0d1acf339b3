"""From a run folder to a verified bundle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bundle import Bundle, BundleError, is_replaceable, manifest_of, model_id, read_bundle, write_bundle
from export.decode import decode_graph
from export.model import model_graph, states_of
from export.verify import Parity, verify
from export.weights import weights_of
from train.config import ModelConfig
from train.errors import TrainError
from train.run import Run, RunError, load_run


class UnsupportedError(TrainError):
    """A model that no bundle can be made of yet."""


@dataclass(frozen=True)
class Exported:
    """What became of one run."""

    folder: Path
    size: int  # bytes of all graphs
    parity: Parity
    unchanged: bool  # an identical bundle was there already


def export_run(run_folder: str | Path, out: str | Path, force: bool = False) -> Exported:
    """Export a run folder to the bundle `out`/NAME, NAME being the run folder's own; verified before it is written.

    Raises RunError for a run that cannot be used, UnsupportedError for one that cannot be exported yet, ParityError if
    the graphs do not do what the model does, and BundleError if a different bundle is there and `force` is not given.
    """
    run = load_run(run_folder)
    name = Path(run_folder).resolve().name
    folder = Path(out) / name
    summary = _training_summary(run)
    bundle = build_bundle(run, name)
    unchanged = _is_there(folder, bundle, force)
    parity = verify(bundle, run.build())
    if not unchanged:
        write_bundle(bundle, manifest_of(bundle, summary, parity.report()), folder)
    return Exported(folder, sum(map(len, bundle.graphs.values())), parity, unchanged)


def build_bundle(run: Run, name: str) -> Bundle:
    """The bundle of a run, in memory: of a tagger the portable graph alone, for only a generator can stream.

    Equal runs give equal bytes: no name, path or time is in the graphs. Raises UnsupportedError.
    """
    config, vocabulary = run.model, run.vocabulary
    if config.task == "generate":
        _require_serving_graph(config)
    weights, states = weights_of(run), states_of(config)
    metadata = {  # what another program needs to run a graph alone
        "rill.model": json.dumps(config.to_json()),
        "rill.states": json.dumps([{"name": name, "shape": shape} for name, shape in states]),
        "rill.vocabulary": json.dumps(vocabulary.symbols, ensure_ascii=False),
    }
    if run.labels:
        metadata["rill.labels"] = json.dumps(run.labels, ensure_ascii=False)
    graphs = {"model": model_graph(config, weights, metadata)}
    if config.task == "generate":
        for key, filters in [("decode", False), ("decode_filters", True)]:
            graphs[key] = decode_graph(weights, vocabulary.unknown_id, filters, metadata)
    return Bundle(
        name=name,
        model_id=model_id(graphs, vocabulary, run.labels),
        model=config.to_json(),
        precision="fp32",
        vocabulary=vocabulary,
        states=states,
        graphs=graphs,
        labels=run.labels,
    )


def _require_serving_graph(config: ModelConfig) -> None:
    """Raise UnsupportedError for a generator of which `export.decode` can make no serving graph."""
    if config.cell != "gru":
        feature = f"cell {config.cell!r}"
    elif config.reset != "after":
        feature = f"reset {config.reset!r}"
    elif config.residual and config.layers > 1:
        feature = "residual sums"
    else:
        return
    raise UnsupportedError(
        f"a generator with {feature} cannot be exported yet: there are serving graphs for GRUs with reset 'after' and "
        "without residual sums only"
    )


def _is_there(folder: Path, bundle: Bundle, force: bool) -> bool:
    """Whether `folder` already holds `bundle`. Raises BundleError for something else, unless `force` may replace it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not is_replaceable(folder):
        raise BundleError(f"{folder} exists and is not a bundle; give another --out")  # never deleted, --force or not
    try:
        if read_bundle(folder).model_id == bundle.model_id:
            return True
    except BundleError:
        if not force:
            raise BundleError(f"{folder} holds a damaged bundle; replace it with --force") from None
    if not force:
        raise BundleError(f"{folder} holds a different bundle; replace it with --force")
    return False


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
