"""A bundle: a folder with the graphs of one model and the manifest that describes them. Standard library only.

    manifest.json         format_version, name, model_id, model, precision, states, graphs, training, parity,
                          vocabulary, and of a tagger its labels
    model.onnx            the portable graph (`export.model`)
    decode.onnx           the serving graph (`export.decode`)
    decode-filters.onnx   its variant with top-k, top-p, min-p and logit bias

A tagger's bundle has the portable graph alone. Export writes bundles and the server reads them; a bundle is taken only
if it is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.vocab import Vocabulary

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 64 * 2**20  # far above any real vocabulary: a manifest is read whole

# The graphs by their key in the manifest; a bundle that cannot stream has the first only.
FILES = {"model": "model.onnx", "decode": "decode.onnx", "decode_filters": "decode-filters.onnx"}


class BundleError(ValueError):
    """A bundle is missing, damaged, or in the way; the message names the file and says what to do."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read and checked: `graphs` holds the serialised ONNX models by key.

    `labels` are a tagger's, in the order of its logits; a generator has none.
    """

    name: str
    model_id: str
    model: Mapping[str, Any]
    precision: str
    vocabulary: Vocabulary
    states: tuple[tuple[str, tuple[int | str, ...]], ...]
    graphs: Mapping[str, bytes]
    labels: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Recurrent layers."""
        return int(self.model["layers"])

    @property
    def hidden(self) -> int:
        """Units per layer."""
        return int(self.model["hidden"])

    @property
    def streamable(self) -> bool:
        """Whether there is a serving graph."""
        return "decode" in self.graphs


def model_id(graphs: Mapping[str, bytes], vocabulary: Vocabulary, labels: tuple[str, ...] = ()) -> str:
    """sha256 over the graphs, in the order of their keys, the vocabulary and a tagger's labels: hex."""
    digest = hashlib.sha256()
    for key in sorted(graphs):
        digest.update(f"{key}:{hashlib.sha256(graphs[key]).hexdigest()}\n".encode())
    digest.update(json.dumps(vocabulary.symbols, ensure_ascii=False).encode())
    if labels:
        digest.update(json.dumps(labels, ensure_ascii=False).encode())
    return digest.hexdigest()


def manifest_of(bundle: Bundle, training: Mapping[str, Any], parity: Mapping[str, Any]) -> dict[str, Any]:
    """The content of manifest.json."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": bundle.name,
        "model_id": bundle.model_id,
        "model": dict(bundle.model),
        "precision": bundle.precision,
        "states": [{"name": name, "next": f"next_{name}", "shape": list(shape)} for name, shape in bundle.states],
        "graphs": {
            key: {"file": FILES[key], "sha256": hashlib.sha256(graph).hexdigest()}
            for key, graph in bundle.graphs.items()
        },
        "training": dict(training),
        "parity": dict(parity),
        "vocabulary": list(bundle.vocabulary.symbols),
    }
    if bundle.labels:
        manifest["labels"] = list(bundle.labels)
    return manifest


def write_bundle(bundle: Bundle, manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the bundle's folder aside, then rename it into place. Raises OSError; `folder` is then as it was.

    Killed just between its two renames it leaves no `folder`, and the old bundle as `.NAME.old` until the next export.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (aside, old):  # of an export that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        aside.mkdir()
        for key, graph in bundle.graphs.items():
            _write(aside / FILES[key], graph)
        _write(aside / MANIFEST, (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle's folder. Raises BundleError unless every file is there and is what the manifest says."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        model = dict(manifest["model"])
        tags = model["task"] == "tag"
        bundle = Bundle(
            name=str(manifest["name"]),
            model_id=str(manifest["model_id"]),
            model=model,
            precision=str(manifest["precision"]),
            vocabulary=Vocabulary(_strings(manifest, "vocabulary"), characters=not tags),
            states=tuple((str(state["name"]), tuple(state["shape"])) for state in manifest["states"]),
            graphs={str(key): _read_graph(folder, graph) for key, graph in manifest["graphs"].items()},
            labels=_strings(manifest, "labels") if tags else (),
        )
        bundle.layers, bundle.hidden  # noqa: B018  # a missing or crooked size must show here
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
        raise BundleError(f"{folder / MANIFEST} {reason}; export the run again") from None
    if bundle.model_id != model_id(bundle.graphs, bundle.vocabulary, bundle.labels):
        hashed = "graphs, the vocabulary and the labels" if tags else "graphs and the vocabulary"
        raise BundleError(f"{folder}: model_id does not match the {hashed}; export the run again")
    return bundle


def is_replaceable(folder: Path) -> bool:
    """Whether `folder` is a bundle, whole or damaged, and nothing else is in it."""
    manifest = folder / MANIFEST
    if not manifest.is_file() or {path.name for path in folder.iterdir()} - {MANIFEST, *FILES.values()}:
        return False
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return True  # damaged
    return isinstance(content, dict) and "format_version" in content


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: no such folder; make one with python -m export RUN --out FOLDER")
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with python -m export")
    if path.stat().st_size > _MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {_MANIFEST_BYTES} bytes: not a manifest of ours")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the run again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int:
        raise BundleError(f"{path} has no format_version: not a manifest of ours")
    if version != FORMAT_VERSION:
        older = "an older" if version < FORMAT_VERSION else "a newer"
        raise BundleError(
            f"{path} has {older} format ({version}; this program reads {FORMAT_VERSION}); export it again"
        )
    return manifest


def _strings(manifest: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = manifest[key]
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    return tuple(values)


def _read_graph(folder: Path, entry: Mapping[str, str]) -> bytes:
    name = str(entry["file"])
    if name != Path(name).name:  # a manifest must not reach out of its folder
        raise BundleError(f"{folder / MANIFEST} names a file outside the bundle: {name!r}")
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the run again") from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise BundleError(f"{path} is damaged: its checksum is not the manifest's; export the run again")
    return data
