"""Writing a bundle's folder so that it is never half-written. `rill.bundle` has the format and reads it."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rill.bundle import (
    CONSTRAINED,
    CONSTRAINED_FILES,
    FILES,
    MANIFEST,
    NGRAMS,
    NGRAMS_FILE,
    Bundle,
    format_version,
    state_entries,
)
from rill.train.record.files import replace_file

_EARLIER_FILES = ("decode-filters.onnx",)  # in bundles of format 1


def manifest_of(bundle: Bundle, training: Mapping[str, Any], parity: Mapping[str, Any]) -> dict[str, Any]:
    """The content of manifest.json; `training` and `parity` must be JSON-ready."""
    manifest = {
        "format_version": format_version(bundle.model),
        "name": bundle.name,
        "model_id": bundle.model_id,
        "model": dict(bundle.model),
        "precision": bundle.precision,
        "states": state_entries(bundle.states),
        "graphs": {key: _entry(FILES[key], graph) for key, graph in bundle.graphs.items()},
        "training": dict(training),
        "parity": dict(parity),
        **bundle.vocabulary.to_json(),
    }
    if bundle.constrained:
        manifest[CONSTRAINED] = {
            key: _entry(CONSTRAINED_FILES[key], graph) for key, graph in bundle.constrained.items()
        }
    if bundle.ngrams:
        manifest[NGRAMS] = _entry(NGRAMS_FILE, bundle.ngrams)
    if bundle.labels:
        manifest["labels"] = list(bundle.labels)
    return manifest


def _entry(file: str, content: bytes) -> dict[str, str]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


def write_bundle(bundle: Bundle, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the bundle to a temporary folder, then rename that to `folder`.

    Raises OSError and leaves `folder` as it was. If the process is killed between the two renames, `folder` is missing
    and the old bundle is `.NAME.old` until the next export. If other processes may export to `folder`, the caller must
    hold its lock (`rill.export.lock`).
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = _temporary_folders(folder)
    remove_leftovers(folder)
    try:
        new.mkdir()
        for key, graph in bundle.graphs.items():
            replace_file(new / FILES[key], graph)
        for key, graph in bundle.constrained.items():
            replace_file(new / CONSTRAINED_FILES[key], graph)
        if bundle.ngrams:
            replace_file(new / NGRAMS_FILE, bundle.ngrams)
        replace_file(new / MANIFEST, (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed export to `folder` left beside it. The caller holds the same lock as for writing."""
    for leftover in _temporary_folders(folder.resolve()):
        shutil.rmtree(leftover, ignore_errors=True)


def is_replaceable(folder: Path) -> bool:
    """Whether `folder` is a bundle, whole or damaged, and holds nothing else."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    known = {MANIFEST, NGRAMS_FILE, *FILES.values(), *CONSTRAINED_FILES.values(), *_EARLIER_FILES}
    if any(path.name not in known or not path.is_file() for path in folder.iterdir()):
        return False
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return True  # damaged
    return isinstance(content, dict) and "format_version" in content


def _temporary_folders(folder: Path) -> tuple[Path, Path]:
    """Where the new bundle is written, and where the old one waits until the new one is in place."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
