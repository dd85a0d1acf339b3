"""A bundle: a folder with the graphs of one model and the manifest that describes them. Standard library only.

    manifest.json         format_version, name, model_id, model, precision, states, graphs, training, parity,
                          vocabulary, and of a tagger its labels
    model.onnx            the portable graph (`rill.export.graphs.portable`)
    decode.onnx           the serving graph (`rill.export.graphs.serving`)
    decode-top-p.onnx     its variant with top-p, min-p and logit bias
    decode-top-k.onnx     ... and top-k
    decode-logprobs.onnx  ... and log-probabilities

A tagger's bundle has the portable graph alone. Export writes bundles and the server reads them; a bundle is taken only
if it is whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rill.vocabulary import Vocabulary

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 64 * 2**20  # far above any real vocabulary: a manifest is read whole
_GRAPH_BYTES = 2**31 - 1  # no ONNX model is larger
# Far above any model of this kind: memory is taken for as many states as there may be streams.
_MOST_LAYERS, _MOST_HIDDEN, _MOST_SYMBOLS = 1_000, 100_000, 2_000_000
_LONGEST_NAME = 255


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
    """A bundle that has been read and checked: `graphs` holds the serialised ONNX models by key.

    `labels` are a tagger's, in the order of its logits; a generator has none.
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


def state_entries(states: States) -> list[dict[str, Any]]:
    """The states as manifest.json lists them."""
    return [{"name": name, "next": f"next_{name}", "shape": list(shape)} for name, shape in states]


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle's folder. Raises BundleError unless every file is there and is what the manifest says."""
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
            vocabulary=Vocabulary(_symbols(manifest), characters=not tags),
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
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a bundle: no such folder; make one with rill export RUN --out FOLDER")
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}; make one with rill export")
    data = _read_file(path, _MANIFEST_BYTES)
    try:
        manifest: dict[str, Any] = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the run again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int:
        raise BundleError(f"{path} has no format_version: not a manifest of ours")
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


# The parts of a manifest, checked: what is wrong is a KeyError, TypeError, AttributeError or ValueError, of which
# `read_bundle` makes a sentence that names the manifest.


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    model = dict(manifest["model"])
    if model["task"] not in _REQUIRED_GRAPHS:
        raise ValueError(f"task {model['task']!r} is neither generate nor tag")
    if model["cell"] not in _STATE_PARTS:
        raise ValueError(f"cell {model['cell']!r} is none of {', '.join(_STATE_PARTS)}")
    for size, most in (("layers", _MOST_LAYERS), ("hidden", _MOST_HIDDEN)):
        if type(model[size]) is not int or model[size] < 1:
            raise ValueError(f"{size} must be a whole number of at least 1, not {model[size]!r}")
        if model[size] > most:
            raise ValueError(f"{size} must be at most {most}, not {model[size]}")
    if not isinstance(model["bidirectional"], bool):
        raise ValueError(f"bidirectional must be true or false, not {model['bidirectional']!r}")
    return model


def _precision(manifest: Mapping[str, Any]) -> str:
    precision = _string(manifest, "precision")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    return precision


def _states(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> States:
    """The states of the manifest, which must be those that a model of this kind has (`states_of`)."""
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
            raise ValueError(f"graph {key!r} is none of {', '.join(FILES)}")
        if entry["file"] != FILES[key]:  # so no name is there twice, and none reaches out of the folder
            raise ValueError(f"graph {key!r} is in {entry['file']!r} instead of {FILES[key]!r}")
    return {key: _read_graph(folder / FILES[key], entry["sha256"]) for key, entry in graphs.items()}


def _read_graph(path: Path, sha256: str) -> bytes:
    data = _read_file(path, _GRAPH_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(f"{path} is damaged: its checksum is not the manifest's; export the run again")
    return data


def _read_file(path: Path, most: int) -> bytes:
    """All of a file of a bundle: a real one, in its folder, of `most` bytes. Raises BundleError."""
    try:
        if not path.resolve(strict=True).is_relative_to(path.parent.resolve()):
            raise BundleError(f"{path} is a link to a file outside of the bundle; copy the file itself there")
        if not path.is_file():
            raise BundleError(f"{path} is not a file")
        if path.stat().st_size > most:
            raise BundleError(f"{path} is larger than {most} bytes: not a file of ours")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{path} cannot be read ({reason}); export the run again") from None


def _name(manifest: Mapping[str, Any]) -> str:
    name = _string(manifest, "name")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"'name' must have at most {_LONGEST_NAME} characters, all of them printable")
    return name


def _string(manifest: Mapping[str, Any], key: str) -> str:
    value = manifest[key]
    if not (isinstance(value, str) and value):
        raise ValueError(f"{key!r} must be a string that is not empty")
    return value


def _symbols(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    symbols = _strings(manifest, "vocabulary")
    if len(symbols) > _MOST_SYMBOLS:
        raise ValueError(f"the vocabulary must have at most {_MOST_SYMBOLS} symbols, not {len(symbols)}")
    return symbols


def _strings(manifest: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = manifest[key]
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    return tuple(values)
