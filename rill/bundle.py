"""A bundle: a folder with the graphs of one model and the manifest that describes them. Standard library only.

    manifest.json         format_version, name, model_id, model, precision, states, graphs, training, parity,
                          vocabulary (`rill.vocabulary.Vocabulary.to_json`); a tagger's also has labels
    model.onnx            the portable graph (`rill.export.graphs.portable`)
    decode.onnx           the serving graph (`rill.export.graphs.serving`)
    decode-top-p.onnx     a variant with top-p, min-p and logit bias
    decode-top-k.onnx     a variant with these and top-k
    decode-logprobs.onnx  a variant with these and log-probabilities

A tagger's bundle has the portable graph only. `rill.export.write` writes bundles; the server accepts one only if it is
complete and undamaged.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rill.vocabulary import Vocabulary

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 64 * 2**20  # a limit far above any real vocabulary, because the whole file is read
_GRAPH_BYTES = 2**31 - 1  # no ONNX model is larger
# Limits far above any model of this kind: memory is reserved for the states of all streams.
_MAX_LAYERS, _MAX_HIDDEN, _MAX_SYMBOLS = 1_000, 100_000, 2_000_000
_MAX_NAME = (
    249  # bytes in UTF-8: while a bundle is written, `.NAME.lock` is beside it, and a file's name has at most 255
)
# Characters that would break the line of a log or a terminal, or reorder it: controls, line ends and bidirectional
# embeddings. The list is fixed, because the categories of Unicode change with Python's version.
_NOT_IN_NAMES = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff/\\\\]")


@dataclass(frozen=True)
class Variant:
    """A serving graph: its key in the manifest, its file, and what it offers beside temperature and greedy decoding.

    `filters` are top-p, min-p and logit bias; `top_k` implies them.
    """

    key: str
    file: str
    filters: bool = False
    top_k: bool = False
    logprobs: bool = False


DECODE = Variant("decode", "decode.onnx")
DECODE_TOP_P = Variant("decode_top_p", "decode-top-p.onnx", filters=True)
DECODE_TOP_K = Variant("decode_top_k", "decode-top-k.onnx", filters=True, top_k=True)
DECODE_LOGPROBS = Variant("decode_logprobs", "decode-logprobs.onnx", filters=True, top_k=True, logprobs=True)
VARIANTS = (DECODE, DECODE_TOP_P, DECODE_TOP_K, DECODE_LOGPROBS)  # the cheapest first

# All graphs by their key in the manifest; the bundle of a tagger has the portable one only.
FILES = {"model": "model.onnx"} | {variant.key: variant.file for variant in VARIANTS}
PRECISIONS = ("fp32", "int8")

_STATE_PARTS = {"gru": ("h",), "lstm": ("h", "c"), "rnn": ("h",)}  # by cell
_REQUIRED_GRAPHS = {"generate": tuple(FILES), "tag": ("model",)}  # by task

States = tuple[tuple[str, tuple[int | str, ...]], ...]  # names and shapes


class BundleError(ValueError):
    """A bundle is missing, damaged, or in the way; the message names the file and says what to do."""


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory: `graphs` holds the serialised ONNX models by key.

    `labels` are those of a tagger, in the order of its logits; a generator has none.
    """

    name: str
    model_id: str
    model: Mapping[str, Any]
    precision: str
    vocabulary: Vocabulary
    states: States
    graphs: Mapping[str, bytes]
    labels: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Number of recurrent layers."""
        return int(self.model["layers"])

    @property
    def hidden(self) -> int:
        """Units per layer."""
        return int(self.model["hidden"])

    @property
    def streamable(self) -> bool:
        """Whether the bundle has a serving graph."""
        return DECODE.key in self.graphs


def require_name(name: str) -> None:
    """Raise ValueError, with the reason, unless a bundle can have this name. Export and `read_bundle` both ask here.

    A name becomes the name of a folder; it stands in logs and metrics, and clients give it in requests.
    """
    if not name:
        raise ValueError("it is empty")
    if name.startswith("."):
        raise ValueError("it begins with a dot, so its folder would be hidden")
    if wrong := _NOT_IN_NAMES.search(name):
        what = f"it contains {wrong[0]!r} (U+{ord(wrong[0]):04X})"
        raise ValueError(f"{what}, so it is not UTF-8" if "\ud800" <= wrong[0] <= "\udfff" else what)
    if (size := len(name.encode())) > _MAX_NAME:
        raise ValueError(f"it has {size} bytes in UTF-8, more than {_MAX_NAME}")


def model_id(graphs: Mapping[str, bytes], vocabulary: Vocabulary, labels: tuple[str, ...] = ()) -> str:
    """sha256, in hex, over the graphs in the order of their keys, the vocabulary's entries and a tagger's labels."""
    digest = hashlib.sha256()
    for key in sorted(graphs):
        digest.update(f"{key}:{hashlib.sha256(graphs[key]).hexdigest()}\n".encode())
    symbols, *others = vocabulary.to_json().items()
    digest.update(json.dumps(symbols[1], ensure_ascii=False).encode())
    if others:
        digest.update(json.dumps(others, ensure_ascii=False).encode())
    if labels:
        digest.update(json.dumps(labels, ensure_ascii=False).encode())
    return digest.hexdigest()


def vocabulary_metadata(vocabulary: Vocabulary) -> dict[str, str]:
    """The entries of a graph's metadata that describe the vocabulary: `rill.vocabulary` and the like, in JSON."""
    return {f"rill.{key}": json.dumps(value, ensure_ascii=False) for key, value in vocabulary.to_json().items()}


def state_entries(states: States) -> list[dict[str, Any]]:
    """The states as manifest.json lists them."""
    return [{"name": name, "next": f"next_{name}", "shape": list(shape)} for name, shape in states]


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle's folder. Raises BundleError unless all files exist and match the manifest."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        model = _model(manifest)
        tags = model["task"] == "tag"
        bundle = Bundle(
            name=_name(manifest),
            model_id=_string(manifest, "model_id"),
            model=model,
            precision=_precision(manifest),
            vocabulary=_vocabulary(manifest, tags),
            states=_states(manifest, model),
            graphs=_graphs(folder, manifest, model),
            labels=_strings(manifest, "labels") if tags else (),
        )
        hashed = model_id(bundle.graphs, bundle.vocabulary, bundle.labels)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
        raise BundleError(f"{folder / MANIFEST} {reason}; export the run again") from None
    if bundle.model_id != hashed:
        what = "graphs, the vocabulary and the labels" if tags else "graphs and the vocabulary"
        raise BundleError(f"{folder}: model_id does not match the {what}; export the run again")
    return bundle


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a bundle: no such folder; make one with rill export RUN --out FOLDER")
        if not path.is_file():
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with rill export")
    except OSError as error:
        raise BundleError(f"{folder} cannot be read ({error.strerror}); check its permissions") from None
    data = _read_file(path, _MANIFEST_BYTES)
    try:
        manifest: dict[str, Any] = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the run again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int:
        raise BundleError(f"{path} has no format_version, so it is not a manifest of Rill")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has a newer format ({version}; this program reads {FORMAT_VERSION}); update Rill, or export the "
            "run with this version"
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{path} has an older format ({version}; this program reads {FORMAT_VERSION}); export the run again"
        )
    return manifest


# The parts of a manifest, checked. `read_bundle` turns the KeyError, TypeError, AttributeError or ValueError that these
# raise into a sentence that names the manifest.


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    model = dict(manifest["model"])
    if model["task"] not in _REQUIRED_GRAPHS:
        raise ValueError(f"task {model['task']!r} is not generate or tag")
    if model["cell"] not in _STATE_PARTS:
        raise ValueError(f"cell {model['cell']!r} is not one of {', '.join(_STATE_PARTS)}")
    for size, limit in (("layers", _MAX_LAYERS), ("hidden", _MAX_HIDDEN)):
        if type(model[size]) is not int or model[size] < 1:
            raise ValueError(f"{size} must be a whole number of at least 1, not {model[size]!r}")
        if model[size] > limit:
            raise ValueError(f"{size} must be at most {limit}, not {model[size]}")
    if not isinstance(model["bidirectional"], bool):
        raise ValueError(f"bidirectional must be true or false, not {model['bidirectional']!r}")
    return model


def _precision(manifest: Mapping[str, Any]) -> str:
    precision = _string(manifest, "precision")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def _states(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> States:
    """The states of the manifest, which must be those of a model of this kind."""
    shape = (model["layers"] * (2 if model["bidirectional"] else 1), "batch", model["hidden"])
    states: States = tuple((f"state_{part}", shape) for part in _STATE_PARTS[model["cell"]])
    if manifest["states"] != state_entries(states):
        pairs = " and ".join(f"{name} -> next_{name}" for name, _ in states)
        raise ValueError(f"the states of this {model['cell']} must be {pairs} of shape {json.dumps(shape)}")
    return states


def _graphs(folder: Path, manifest: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, bytes]:
    graphs = manifest["graphs"]
    for key in _REQUIRED_GRAPHS[model["task"]]:
        if key not in graphs:
            raise ValueError(f"there is no graph {key!r}")
    for key, entry in graphs.items():
        if key not in FILES:
            raise ValueError(f"graph {key!r} is not one of {', '.join(FILES)}")
        if entry["file"] != FILES[key]:  # so no name is repeated or outside the folder
            raise ValueError(f"graph {key!r} is in {entry['file']!r} instead of {FILES[key]!r}")
    return {key: _read_graph(folder / FILES[key], entry["sha256"]) for key, entry in graphs.items()}


def _read_graph(path: Path, sha256: str) -> bytes:
    data = _read_file(path, _GRAPH_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{path} is damaged: its checksum differs from the manifest; export the run again")
    return data


def _read_file(path: Path, limit: int) -> bytes:
    """Read a whole file of a bundle: a real one, in its folder, of at most `limit` bytes. Raises BundleError."""
    try:
        if not path.resolve(strict=True).is_relative_to(path.parent.resolve()):
            raise BundleError(f"{path} is a link to a file outside the bundle; copy the file into the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is not a file")
        if path.stat().st_size > limit:
            raise BundleError(f"{path} is larger than {limit} bytes, so it is not a file of Rill")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path} cannot be read ({reason}); export the run again") from None


def _name(manifest: Mapping[str, Any]) -> str:
    name = _string(manifest, "name")
    try:
        require_name(name)
    except ValueError as error:
        raise ValueError(f"{name[:80]!r} cannot be the 'name' of a bundle: {error}") from None
    return name


def _string(manifest: Mapping[str, Any], key: str) -> str:
    value = manifest[key]
    if not (isinstance(value, str) and value):
        raise ValueError(f"{key!r} must be a non-empty string")
    return value


def _vocabulary(manifest: Mapping[str, Any], tags: bool) -> Vocabulary:
    if len(manifest["vocabulary"]) > _MAX_SYMBOLS:
        raise ValueError(f"the vocabulary must have at most {_MAX_SYMBOLS} symbols, not {len(manifest['vocabulary'])}")
    return Vocabulary.from_json(manifest, sequences=tags)


def _strings(manifest: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = manifest[key]
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    return tuple(values)
