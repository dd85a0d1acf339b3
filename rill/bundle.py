"""A bundle: a folder with the graphs of one model and the manifest that describes them. Standard library only.

    manifest.json         format_version, name, model_id, model, precision, states, graphs, constrained, training,
                          parity, vocabulary (`rill.vocabulary.Vocabulary.to_json`); a tagger's also has labels
    model.onnx            the portable graph (`rill.export.graphs.portable`)
    decode.onnx           the serving graph (`rill.export.graphs.serving`)
    decode-top-p.onnx     a variant with top-p, min-p and logit bias
    decode-top-k.onnx     a variant with these and top-k
    decode-logprobs.onnx  a variant with these and log-probabilities
    decode-constrained.onnx, decode-constrained-logprobs.onnx
                          variants of decode.onnx and decode-logprobs.onnx for texts that must match
    ngrams.npy            the folded n-gram tables of a model that has some: an input of the serving graphs

A tagger's bundle has the portable graph only. The manifest lists the variants for texts that must match apart from the
other graphs, under `constrained`: they are not part of the model's id, bundles of earlier versions lack them, and
earlier versions ignore them. `rill.export.write` writes bundles; the server accepts one only if it is complete and
undamaged.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rill.ngrams import MAX_NGRAMS, folded_rows
from rill.vocabulary import Vocabulary

FORMAT_VERSION = 3  # with n-gram tables; bundles without them are of the version before, which earlier programs read
MANIFEST = "manifest.json"
_MANIFEST_BYTES = 64 * 2**20  # a limit far above any real vocabulary, because the whole file is read
_GRAPH_BYTES = 2**31 - 1  # no ONNX model is larger
MAX_NGRAMS_BYTES = 2**31 - 1
# Limits far above any model of this kind: memory is reserved for the states of all streams.
_MAX_LAYERS, _MAX_HIDDEN, _MAX_SYMBOLS, _MAX_ROWS = 1_000, 100_000, 2_000_000, 2**31
_MAX_NAME = (
    249  # bytes in UTF-8: while a bundle is written, `.NAME.lock` is beside it, and a file's name has at most 255
)
# Characters that would break the line of a log or a terminal, or reorder it: controls, line ends and bidirectional
# embeddings. The list is fixed, because the categories of Unicode change with Python's version.
_NOT_IN_NAMES = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff/\\\\]")


@dataclass(frozen=True)
class Variant:
    """A serving graph: its key in the manifest, its file, and what it offers beside temperature and greedy decoding.

    `filters` are top-p, min-p and logit bias; `top_k` implies them. A `constrained` one makes texts that must match.
    """

    key: str
    file: str
    filters: bool = False
    top_k: bool = False
    logprobs: bool = False
    constrained: bool = False


DECODE = Variant("decode", "decode.onnx")
DECODE_TOP_P = Variant("decode_top_p", "decode-top-p.onnx", filters=True)
DECODE_TOP_K = Variant("decode_top_k", "decode-top-k.onnx", filters=True, top_k=True)
DECODE_LOGPROBS = Variant("decode_logprobs", "decode-logprobs.onnx", filters=True, top_k=True, logprobs=True)
VARIANTS = (DECODE, DECODE_TOP_P, DECODE_TOP_K, DECODE_LOGPROBS)  # the cheapest first
DECODE_CONSTRAINED = Variant("decode_constrained", "decode-constrained.onnx", constrained=True)
DECODE_CONSTRAINED_LOGPROBS = Variant(
    "decode_constrained_logprobs",
    "decode-constrained-logprobs.onnx",
    filters=True,
    top_k=True,
    logprobs=True,
    constrained=True,
)
CONSTRAINED_VARIANTS = (DECODE_CONSTRAINED, DECODE_CONSTRAINED_LOGPROBS)

# All graphs by their key in the manifest; the bundle of a tagger has the portable one only.
FILES = {"model": "model.onnx"} | {variant.key: variant.file for variant in VARIANTS}
CONSTRAINED = "constrained"  # the key of these graphs in the manifest
CONSTRAINED_FILES = {variant.key: variant.file for variant in CONSTRAINED_VARIANTS}
NGRAMS = "ngrams"  # the serving graphs' input for the n-gram tables, and their key in the manifest
NGRAMS_FILE = "ngrams.npy"
CONTEXT = "context"  # the state that holds the last symbols, int64; all others are float32 vectors
PRECISIONS = ("fp32", "int8")

_STATE_PARTS = {"gru": ("h",), "lstm": ("h", "c"), "rnn": ("h",)}  # by cell
_GATES = {"gru": 3, "lstm": 4, "rnn": 1}
_REQUIRED_GRAPHS = {"generate": tuple(FILES), "tag": ("model",)}  # by task

States = tuple[tuple[str, tuple[int | str, ...]], ...]  # names and shapes


class BundleError(ValueError):
    """A bundle is missing, damaged, or in the way; the message names the file and says what to do."""


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory: `graphs` holds the serialised ONNX models by key.

    `labels` are those of a tagger, in the order of its logits; a generator has none. `ngrams` is the content of
    ngrams.npy (`ngrams_header` and the values), if the model has n-gram tables. `constrained` holds the graphs for
    texts that must match, by key; it is empty in bundles of earlier versions.
    """

    name: str
    model_id: str
    model: Mapping[str, Any]
    precision: str
    vocabulary: Vocabulary
    states: States
    graphs: Mapping[str, bytes]
    labels: tuple[str, ...] = ()
    ngrams: bytes = b""
    constrained: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Number of recurrent layers."""
        return int(self.model["layers"])

    @property
    def hidden(self) -> int:
        """Units per layer."""
        return int(self.model["hidden"])

    @property
    def vectors(self) -> States:
        """The states that are float32 vectors: all but the context."""
        return tuple((name, shape) for name, shape in self.states if name != CONTEXT)

    @property
    def state_bytes(self) -> int:
        """Bytes of one stream's states."""
        return 4 * self.layers * self.hidden * len(self.vectors) + 8 * self.context_length

    @property
    def context_length(self) -> int:
        """Symbols that the context holds; 0 without n-gram tables."""
        return int(self.model.get("ngrams", 1)) - 1

    @property
    def ngrams_shape(self) -> tuple[int, int]:
        """Rows and columns of the folded n-gram tables; the columns are the first layer's gates."""
        return _ngrams_shape(self.model, len(self.vocabulary))

    @property
    def ngrams_values(self) -> "memoryview[float]":
        """The folded n-gram tables, float32 of `ngrams_shape`; not a copy."""
        shape = self.ngrams_shape
        return memoryview(self.ngrams)[len(ngrams_header(*shape)) :].cast("f", shape)

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


def model_id(
    graphs: Mapping[str, bytes], vocabulary: Vocabulary, labels: tuple[str, ...] = (), ngrams: bytes = b""
) -> str:
    """sha256, in hex, over the graphs in the order of their keys, the vocabulary's entries, a tagger's labels, and
    ngrams.npy.
    """
    digest = hashlib.sha256()
    for key in sorted(graphs):
        digest.update(f"{key}:{hashlib.sha256(graphs[key]).hexdigest()}\n".encode())
    symbols, *others = vocabulary.to_json().items()
    digest.update(json.dumps(symbols[1], ensure_ascii=False).encode())
    if others:
        digest.update(json.dumps(others, ensure_ascii=False).encode())
    if labels:
        digest.update(json.dumps(labels, ensure_ascii=False).encode())
    if ngrams:
        digest.update(f"{NGRAMS}:{hashlib.sha256(ngrams).hexdigest()}\n".encode())
    return digest.hexdigest()


def vocabulary_metadata(vocabulary: Vocabulary) -> dict[str, str]:
    """The entries of a graph's metadata that describe the vocabulary: `rill.vocabulary` and the like, in JSON."""
    return {f"rill.{key}": json.dumps(value, ensure_ascii=False) for key, value in vocabulary.to_json().items()}


def state_entries(states: States) -> list[dict[str, Any]]:
    """The states as manifest.json lists them; what is not float32 has a dtype."""
    return [
        {"name": name, "next": f"next_{name}", "shape": list(shape)} | ({"dtype": "int64"} if name == CONTEXT else {})
        for name, shape in states
    ]


def format_version(model: Mapping[str, Any]) -> int:
    """The version of the format of a bundle with this model."""
    return FORMAT_VERSION if model.get("ngrams", 1) > 1 else FORMAT_VERSION - 1


def ngrams_header(rows: int, columns: int) -> bytes:
    """The header of ngrams.npy, NumPy's format 1.0, for float32 values; the values follow row by row."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}".encode()
    padding = -(10 + len(fields) + 1) % 64
    length = len(fields) + padding + 1
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + fields + b" " * padding + b"\n"


def _ngrams_shape(model: Mapping[str, Any], symbols: int) -> tuple[int, int]:
    return folded_rows(symbols, model["ngrams"], model["ngram_rows"]), _GATES[model["cell"]] * model["hidden"]


def read_bundle(folder: str | Path) -> Bundle:
    """Read and check a bundle's folder. Raises BundleError unless all files exist and match the manifest."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        model = _model(manifest)
        tags = model["task"] == "tag"
        vocabulary = _vocabulary(manifest, tags)
        bundle = Bundle(
            name=_name(manifest),
            model_id=_string(manifest, "model_id"),
            model=model,
            precision=_precision(manifest),
            vocabulary=vocabulary,
            states=_states(manifest, model),
            graphs=_graphs(folder, manifest["graphs"], FILES, _REQUIRED_GRAPHS[model["task"]]),
            labels=_strings(manifest, "labels") if tags else (),
            ngrams=_ngrams(folder, manifest, model, len(vocabulary)),
            constrained=_constrained(folder, manifest, model),
        )
        hashed = model_id(bundle.graphs, vocabulary, bundle.labels, bundle.ngrams)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong: {error}"
        raise BundleError(f"{folder / MANIFEST} {reason}; export the run again") from None
    if bundle.model_id != hashed:
        what = "graphs, the vocabulary and the labels" if tags else "graphs and the vocabulary"
        what = "graphs, the n-gram tables and the vocabulary" if bundle.ngrams else what
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
    if version < FORMAT_VERSION - 1:
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
    _check_ngrams(model, manifest["format_version"])
    return model


def _check_ngrams(model: Mapping[str, Any], version: int) -> None:
    ngrams, rows = model.get("ngrams", 1), model.get("ngram_rows", 1)
    if type(ngrams) is not int or not 1 <= ngrams <= MAX_NGRAMS:
        raise ValueError(f"ngrams must be a whole number from 1 to {MAX_NGRAMS}, not {ngrams!r}")
    if ngrams > 1 and (type(rows) is not int or not 1 <= rows <= _MAX_ROWS):
        raise ValueError(f"ngram_rows must be a whole number from 1 to {_MAX_ROWS}, not {rows!r}")
    if ngrams > 1 and model["task"] != "generate":
        raise ValueError("a tagger has no n-gram tables")
    if version != format_version(model):
        raise ValueError(f"a bundle with ngrams {ngrams} has format {format_version(model)}, not {version}")


def _precision(manifest: Mapping[str, Any]) -> str:
    precision = _string(manifest, "precision")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return precision


def _states(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> States:
    """The states of the manifest, which must be those of a model of this kind."""
    shape = (model["layers"] * (2 if model["bidirectional"] else 1), "batch", model["hidden"])
    states: States = tuple((f"state_{part}", shape) for part in _STATE_PARTS[model["cell"]])
    if model.get("ngrams", 1) > 1:
        states += ((CONTEXT, ("batch", model["ngrams"] - 1)),)
    if manifest["states"] != state_entries(states):
        pairs = " and ".join(f"{name} -> next_{name} of shape {json.dumps(shape)}" for name, shape in states)
        raise ValueError(f"the states of this {model['cell']} must be {pairs}")
    return states


def _graphs(
    folder: Path, entries: Mapping[str, Any], files: Mapping[str, str], required: Sequence[str]
) -> dict[str, bytes]:
    """The content of the graphs `entries` of the manifest, which must be in `files`; all `required` ones are there."""
    for key in required:
        if key not in entries:
            raise ValueError(f"there is no graph {key!r}")
    for key, entry in entries.items():
        if key not in files:
            raise ValueError(f"graph {key!r} is not one of {', '.join(files)}")
        if entry["file"] != files[key]:  # so no name is repeated or outside the folder
            raise ValueError(f"graph {key!r} is in {entry['file']!r} instead of {files[key]!r}")
    return {key: _read_checked(folder / files[key], _GRAPH_BYTES, entry["sha256"]) for key, entry in entries.items()}


def _constrained(folder: Path, manifest: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of the graphs for texts that must match; empty in bundles of earlier versions."""
    if CONSTRAINED not in manifest:
        return {}
    if model["task"] != "generate":
        raise ValueError("a tagger has no graphs for texts that must match")
    return _graphs(folder, manifest[CONSTRAINED], CONSTRAINED_FILES, tuple(CONSTRAINED_FILES))


def _ngrams(folder: Path, manifest: Mapping[str, Any], model: Mapping[str, Any], symbols: int) -> bytes:
    """The content of ngrams.npy, of the model's shape; empty for a model without n-gram tables."""
    if model.get("ngrams", 1) == 1:
        if NGRAMS in manifest:
            raise ValueError("there are n-gram tables, but the model has none")
        return b""
    entry, shape = manifest[NGRAMS], _ngrams_shape(model, symbols)
    if entry["file"] != NGRAMS_FILE:
        raise ValueError(f"the n-gram tables are in {entry['file']!r} instead of {NGRAMS_FILE!r}")
    path, header = folder / NGRAMS_FILE, ngrams_header(*shape)
    size = len(header) + 4 * shape[0] * shape[1]
    if size > MAX_NGRAMS_BYTES:
        raise ValueError(f"n-gram tables of {size} bytes are larger than {MAX_NGRAMS_BYTES}")
    data = _read_checked(path, size, entry["sha256"])
    if len(data) != size or not data.startswith(header):
        raise BundleError(f"{path} is not a float32 array of shape {shape}, as the manifest says; export the run again")
    return data


def _read_checked(path: Path, limit: int, sha256: str) -> bytes:
    data = _read_file(path, limit)
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
