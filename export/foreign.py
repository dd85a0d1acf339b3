"""Foreign checkpoints: a PyTorch GRU, LSTM or tanh-RNN that Rill did not train, as a run that is exported as any other.

A state dict has the weights but not the model, so the model is read off names and shapes. Recurrent weights are known
by PyTorch's names (`weight_ih_l0`, …, or `weight_ih` in a cell) and tell cell, layers, hidden size and biases; the
embedding and the output layer are known by their shapes, and where shapes leave a choice by what they are called.
Whatever is left unclear, or left over, is an error that says which rename settles it.

Some things leave no trace in the weights, and are assumed: gates stacked in PyTorch's order, tanh in an RNN (not relu),
plain layers one after another (no residual sums, no activation between), an embedding that is a plain table (no
`max_norm`), states that start at zero, and, unless told otherwise, a GRU as `nn.GRU` has it. Export compares the graphs
with the model that is made here, which is the foreign one if these hold.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from export.export import Exported, export_loaded
from train.cells import Weights, other_update_convention
from train.config import ModelConfig, TrainingConfig
from train.errors import TrainError
from train.model import CharacterModel
from train.run import Run
from train.vocab import UNKNOWN, Vocabulary

RESETS = ("after", "before")  # the recurrent product
UPDATES = ("keeps", "replaces")  # what an update gate of 1 does to the state

EMBEDDING, OUTPUT, OUTPUT_BIAS = "embedding.weight", "linear.weight", "linear.bias"
_OURS = re.compile(r"embedding\.weight|linear\.(weight|bias)|rnn\.(weight|bias)_[ih]h_l\d{1,4}")
_RECURRENT = re.compile(r"(?:(?P<module>.*)\.)?(?P<tensor>(weight|bias)_[ih]h)(_l(?P<layer>\d{1,4}))?")
_OTHER_RECURRENT = re.compile(r"(?:.*\.)?(weight|bias)_([ih]h|hr)(_l\d+)?(?P<reverse>_reverse)?")
_CELLS = {1: "rnn", 3: "gru", 4: "lstm"}  # by the number of gates

# What a module's name says about its matrix, word by word ("char_emb2" is char, emb); "embed" may be part of a word.
_EMBEDDING_WORDS = {"emb", "embs", "encoder", "enc", "wte", "lookup"}
_OUTPUT_WORDS = {"fc", "linear", "lin", "out", "output", "decoder", "dec", "head", "proj", "projection", "dense"}
_OUTPUT_WORDS |= {"classifier", "logits", "logit", "softmax", "generator"}

_SAVE_IT = "torch.save(model.state_dict(), 'weights.pt') or safetensors.torch.save_file(model.state_dict(), ...)"


class ForeignError(TrainError):
    """A foreign checkpoint or its vocabulary cannot be taken; the message names the tensor and what to do."""


@dataclass(frozen=True)
class ForeignRun(Run):
    """A run made of a foreign checkpoint. `folder` is the checkpoint's file, and of `training` nothing is known.

    `places` says under which name each of our tensors was found, and `notes` what was done to them, in words.
    """

    places: Mapping[str, str]
    notes: tuple[str, ...]


def export_state_dict(
    state_dict: Mapping[str, object] | str | Path,
    vocabulary: Sequence[str] | str | Path,
    out: str | Path,
    name: str | None = None,
    *,
    precision: str = "fp32",
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
    force: bool = False,
    allow_loss: bool = False,
) -> Exported:
    """Export a foreign model as the bundle `out`/NAME, verified as every export is.

    `state_dict` is what `model.state_dict()` gives, or a file of it; `vocabulary` the symbols in id order, or a JSON
    file of them. A file's own name, without its ending, is the NAME if none is given. `rename`, `reset` and `update`
    are those of `run_of_state_dict`; `precision`, `force` and `allow_loss` those of `export_loaded`. Raises
    ForeignError, and what `export_loaded` raises.
    """
    if isinstance(state_dict, str | Path):
        run = foreign_run(state_dict, vocabulary, rename, reset, update)
    else:
        run = run_of_state_dict(state_dict, _vocabulary(vocabulary), rename, reset, update)
        if name is None:
            raise ForeignError("a state dict has no name; give one for its bundle")
    name = bundle_name(run.folder.stem if name is None else name)
    return export_loaded(run, name, out, precision=precision, force=force, allow_loss=allow_loss)


def bundle_name(name: str) -> str:
    """`name`, if a folder can be called that. Raises ForeignError."""
    if name in ("", ".", "..") or any(character in "/\\\0" for character in name):
        raise ForeignError(f"{name!r} is no name for a bundle: it becomes a folder in --out")
    return name


def foreign_run(
    path: str | Path,
    vocabulary: Sequence[str] | str | Path,
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
) -> ForeignRun:
    """The run of a checkpoint file and a vocabulary; see `run_of_state_dict`. Raises ForeignError."""
    symbols = _vocabulary(vocabulary)  # the file that is quick to read first
    return run_of_state_dict(load_state_dict_file(path), symbols, rename, reset, update, source=path)


def run_of_state_dict(
    state_dict: Mapping[str, object],
    vocabulary: Vocabulary,
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
    source: str | Path = "<state dict>",
) -> ForeignRun:
    """The generator of which these are the weights, with its tensors under our names. Raises ForeignError.

    `state_dict` has tensors by name, or has such a mapping in it (as many checkpoints have, under "state_dict" or
    "model"). `rename` gives our name for a tensor of its (several with commas, "" to leave it out): `embedding.weight`,
    `rnn.weight_ih_l0`, …, `linear.weight`, `linear.bias`. `reset` is where a GRU's reset gate acts, `after` the
    recurrent product or `before` it; `update` what its update gate does to the state when it is 1: it `keeps` it, as
    in PyTorch, Keras and ONNX, or `replaces` it by the candidate, as in Chung et al. 2014.

    What is not float32 is converted, and noted if that changed a value. `source` is named in the messages.
    """
    _require_one_of("reset", reset, RESETS)
    _require_one_of("update", update, UPDATES)
    found = _Found(str(source), _state_dict_in(state_dict, source), {})
    found.rename(rename or {})
    found.refuse_what_no_model_has()
    found.place_recurrent()
    cell = found.cell()
    found.place_ends(cell, len(vocabulary))
    found.place_output_bias()
    found.refuse_leftovers()
    weights, notes = found.weights(vocabulary, cell)
    try:
        model = ModelConfig(
            cell=cell.name,
            reset=reset,
            layers=cell.layers,
            hidden=cell.hidden,
            embedding=weights[EMBEDDING].shape[1] if EMBEDDING in weights else 0,
            bias=cell.bias,
        )
    except ValueError as error:
        raise ForeignError(f"{source}: {error}") from None
    found.check_shapes(weights, model, len(vocabulary))
    if update == "replaces":
        if cell.name != "gru":
            raise ForeignError(f"{source}: update 'replaces' is about GRUs; {cell.name} has no update gate")
        weights |= _with_z_negated(weights, cell)
    # No length of training is known, and a TrainingConfig must have one.
    return ForeignRun(Path(source), model, TrainingConfig(steps=1), vocabulary, (), weights, found.places, notes)


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one by torch.save, by name. Raises ForeignError.

    Of PyTorch's files only weights are read: a pickle with anything else in it is refused, not run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror}") from None
    if start[8:] == b"{":  # after the length of its header, safetensors has JSON; no pickle or zip has that there
        try:
            return safetensors.torch.load(path.read_bytes())
        except (SafetensorError, KeyError, ValueError) as error:
            raise ForeignError(f"{path} is a damaged safetensors file: {error}") from None
    return _state_dict_in(_load_pickled_weights(path), path)


def load_vocabulary_file(path: str | Path) -> Vocabulary:
    """A vocabulary from a JSON array of one-character strings in id order; `<unk>` may be among them.

    Raises ForeignError, which names the first position that is wrong.
    """
    path = Path(path)
    try:
        symbols = json.loads(path.read_bytes())
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ForeignError(f"{path} is not JSON: {error}") from None
    if isinstance(symbols, dict):
        raise ForeignError(
            f"{path} must hold a JSON array of characters in id order, not an object; "
            "json.dump(sorted(ids, key=ids.get), file) makes one of {character: id}"
        )
    if not isinstance(symbols, list):
        raise ForeignError(f"{path} must hold a JSON array of characters in id order, not {json.dumps(symbols)[:40]}")
    return _vocabulary_of(symbols, str(path))


def _vocabulary(vocabulary: Sequence[str] | str | Path) -> Vocabulary:
    if isinstance(vocabulary, str | Path):
        return load_vocabulary_file(vocabulary)
    return _vocabulary_of(vocabulary, "the vocabulary")


def _vocabulary_of(symbols: Sequence[object], source: str) -> Vocabulary:
    first: dict[str, int] = {}
    for position, symbol in enumerate(symbols):
        what = f"{source}: {symbol!r:.40} at position {position}"
        if not isinstance(symbol, str):
            raise ForeignError(f"{what} is not a string")
        if len(symbol) != 1 and symbol != UNKNOWN:
            raise ForeignError(f"{what} is not one character; these are models of characters")
        if "\ud800" <= symbol <= "\udfff":
            raise ForeignError(f"{what} is half a surrogate pair, which no text can hold")
        if first.setdefault(symbol, position) != position:
            raise ForeignError(f"{what} is at position {first[symbol]} already")
    if not first:
        raise ForeignError(f"{source} has no symbols")
    return Vocabulary(tuple(first))


class _Cell(NamedTuple):
    """What the recurrent weights tell."""

    name: str
    layers: int
    hidden: int
    inputs: int  # the width of what the first layer reads
    bias: bool


@dataclass
class _Found:
    """The tensors of a checkpoint, and where they belong: `places` has the checkpoint's name by ours."""

    source: str
    tensors: dict[str, Tensor]
    places: dict[str, str]

    def rename(self, names: Mapping[str, str]) -> None:
        """Place what `names` says, and forget what it leaves out."""
        for theirs, ours in names.items():
            if theirs not in self.tensors:
                raise self._error(f"has no tensor {theirs!r} to rename; it has {self._listed(self.tensors)}")
            for name in ours.split(",") if ours else ():
                if not _OURS.fullmatch(name):
                    raise ForeignError(
                        f"cannot rename {theirs} to {name!r}: the names are {EMBEDDING}, rnn.weight_ih_l0, "
                        f"rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0 (l1, … for further layers), {OUTPUT} and "
                        f"{OUTPUT_BIAS}"
                    )
                self._place(name, theirs)
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if names.get(name) != ""}

    def refuse_what_no_model_has(self) -> None:
        """Refuse recurrent weights that no generator has here."""
        for name in self._free():
            match = _OTHER_RECURRENT.fullmatch(name)
            if match and match["reverse"]:
                raise self._error(f"has {name}: a bidirectional model reads ahead, so it cannot generate")
            if match and match[2] == "hr":
                raise self._error(f"has {name}: an LSTM with projections (proj_size) cannot be expressed here")

    def place_recurrent(self) -> None:
        """Place what has PyTorch's recurrent names: of one module, or of numbered ones as the layers."""
        modules: dict[str, list[re.Match[str]]] = {}
        for name in self._free():
            if match := _RECURRENT.fullmatch(name):
                modules.setdefault(match["module"] or "", []).append(match)
        order = list(modules) if len(modules) < 2 else self._numbered(modules)
        for index, module in enumerate(order):
            for match in modules[module]:
                layer = index + int(match["layer"] or 0)
                self._place(f"rnn.{match['tensor']}_l{layer}", match[0])

    def cell(self) -> _Cell:
        """Cell, sizes and biases, from the shapes of the recurrent weights."""
        layers = 1 + max((int(name.split("_l")[1]) for name in self.places if name.startswith("rnn.")), default=-1)
        if not layers:
            raise self._error(
                "has no recurrent weights under PyTorch's names (weight_ih_l0, weight_hh_l0, …); if they have other "
                f"names, give --rename NAME=rnn.weight_ih_l0 and so on; it has {self._listed(self.tensors)}"
            )
        for layer, part in product(range(layers), ("weight_ih", "weight_hh")):
            name = f"rnn.{part}_l{layer}"
            if name not in self.places:
                raise self._error(f"has no {part} of layer {layer}, but other weights up to layer {layers - 1}")
            if self._tensor(name).ndim != 2:
                raise self._error(f"has {self._described(name)}, which is no matrix")
        rows, hidden = self._tensor("rnn.weight_hh_l0").shape
        if not hidden or rows % hidden or rows // hidden not in _CELLS:
            raise self._error(
                f"has {self._described('rnn.weight_hh_l0')}, where rows and columns must be (H, H) for an RNN, "
                "(3H, H) for a GRU or (4H, H) for an LSTM"
            )
        inputs = self._tensor("rnn.weight_ih_l0").shape[1]
        bias = any(name.startswith("rnn.bias") for name in self.places)
        return _Cell(_CELLS[rows // hidden], layers, hidden, inputs, bias)

    def place_ends(self, cell: _Cell, symbols: int) -> None:
        """Place the output layer, and the embedding unless the input is one-hot."""
        readings = self._readings(cell)
        if not readings:
            self._refuse_ends(cell)
        best = [pair for pair in readings if len(self.tensors[pair[1]]) == symbols] or readings
        best = [pair for pair in best if not self._is_contradicted(pair, cell)]
        best = [pair for pair in best if (pair[0] is not None) == any(first is not None for first, _ in best)]
        if not best or (len(best) > 1 and not self._are_tied(best)):
            self._refuse_ambiguity(readings)
        embedding, output = best[0]
        if embedding is not None:
            self.places[EMBEDDING] = embedding
        self.places[OUTPUT] = output

    def place_output_bias(self) -> None:
        """Place the bias beside the output weight, or else the only free vector that is called a bias and fits."""
        if OUTPUT_BIAS in self.places:
            return
        output = self.places[OUTPUT]
        beside = output.removesuffix("weight") + "bias"
        fitting = [name for name in self._free() if self.tensors[name].shape == self.tensors[output].shape[:1]]
        if output.endswith("weight") and beside in self._free():
            self.places[OUTPUT_BIAS] = beside
        elif len(biases := [name for name in fitting if "bias" in name.rpartition(".")[2]]) == 1:
            self.places[OUTPUT_BIAS] = biases[0]

    def refuse_leftovers(self) -> None:
        """Every tensor must have a place, for one without could mean another computation."""
        if left := self._free():
            drops = " ".join(f"--rename {name}=" for name in left[:3]) + " …" * (len(left) > 3)
            raise self._error(
                f"has tensors for which no model here has a place: {self._listed(left)}; rename them, or, if the model "
                f"computes the same without, drop them with {drops}"
            )

    def weights(self, vocabulary: Vocabulary, cell: _Cell) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The weights as f32 under our names, what is missing of the biases as zeros, and notes about both."""
        rows = len(self._tensor(OUTPUT))
        if rows != len(vocabulary):
            raise self._error(
                f"has {self._described(OUTPUT)}, so a model of {rows} symbols, but the vocabulary has {len(vocabulary)}"
            )
        converted = {ours: self._as_float32(theirs) for ours, theirs in self.places.items()}
        rounded = [self.places[ours] for ours, (_, exact) in converted.items() if not exact]
        weights = {ours: weight for ours, (weight, _) in converted.items()}
        missing = {OUTPUT_BIAS: rows}
        if cell.bias:
            sides = product(("ih", "hh"), range(cell.layers))
            missing |= {f"rnn.bias_{side}_l{layer}": len(weights[f"rnn.weight_hh_l{layer}"]) for side, layer in sides}
        zeros = {name: torch.zeros(length) for name, length in missing.items() if name not in weights}
        notes = []
        if rounded:
            notes.append(f"rounded to float32: {', '.join(rounded)}")
        if zeros:
            notes.append(f"not in the checkpoint, so zeros: {', '.join(zeros)}")
        return weights | zeros, tuple(notes)

    def check_shapes(self, weights: Mapping[str, Tensor], model: ModelConfig, symbols: int) -> None:
        """Refuse weights that are not all of the shapes that the model asks for."""
        with torch.device("meta"):  # shapes without storage
            expected = CharacterModel(model, symbols).state_dict()
        for name, tensor in expected.items():
            if weights[name].shape != tensor.shape:
                raise self._error(
                    f"has {self._described(name)}, but a {model.cell} of {model.hidden} units has "
                    f"{tuple(tensor.shape)} there"
                )

    def _place(self, ours: str, theirs: str) -> None:
        if self.places.setdefault(ours, theirs) != theirs:
            raise self._error(
                f"has two tensors for {ours}, {self.places[ours]} and {theirs}; drop one with --rename {theirs}="
            )

    def _numbered(self, modules: Mapping[str, list[re.Match[str]]]) -> list[str]:
        """The modules by number, if they are single layers that differ in a number alone (`cells.0`, `cells.1`)."""
        single = all(int(match["layer"] or 0) == 0 for matches in modules.values() for match in matches)
        patterns = {re.sub(r"\d+", "#", module) for module in modules}
        numbers = {tuple(map(int, re.findall(r"\d{1,9}", module))): module for module in modules}
        if not single or len(patterns) > 1 or len(numbers) < len(modules):
            listed = ", ".join(sorted(modules))
            example = next(iter(modules.values()))[0]
            raise self._error(
                f"has several recurrent modules ({listed}); say what is which layer with --rename {example[0]}="
                f"rnn.{example['tensor']}_l0 and so on, or drop tensors with --rename NAME="
            )
        return [numbers[key] for key in sorted(numbers)]

    def _readings(self, cell: _Cell) -> list[tuple[str | None, str]]:
        """Every embedding (None for one-hot input) and output weight that fit the cell and each other."""
        matrices = [name for name in self._free() if self.tensors[name].ndim == 2]
        embeddings: Iterable[str | None] = [
            None,
            *(name for name in matrices if self.tensors[name].shape[1] == cell.inputs),
        ]
        outputs: Iterable[str] = [name for name in matrices if self.tensors[name].shape[1] == cell.hidden]
        if EMBEDDING in self.places:
            embeddings = [self.places[EMBEDDING]]
        if OUTPUT in self.places:
            outputs = [self.places[OUTPUT]]
        shared = EMBEDDING in self.places and self.places[EMBEDDING] == self.places.get(OUTPUT)  # renamed to both
        return [
            (embedding, output)
            for embedding, output in product(embeddings, outputs)
            if (embedding != output or shared) and self._fit(embedding, output, cell)
        ]

    def _fit(self, embedding: str | None, output: str, cell: _Cell) -> bool:
        symbols = self.tensors[output].shape[:1]
        if self.tensors[output].shape != (*symbols, cell.hidden):
            return False
        if embedding is None:
            return symbols == (cell.inputs,)
        return self.tensors[embedding].shape == (*symbols, cell.inputs)

    def _is_contradicted(self, pair: tuple[str | None, str], cell: _Cell) -> bool:
        """Whether a name says the opposite of what its tensor is taken for, where its shape would allow both."""
        if cell.inputs != cell.hidden:
            return False
        embedding, output = (None if name in self.places.values() else name for name in pair)
        return (embedding is not None and _role(embedding) == OUTPUT) or (
            output is not None and _role(output) == EMBEDDING
        )

    def _are_tied(self, readings: Sequence[tuple[str | None, str]]) -> bool:
        """Whether the readings differ only in which of two equal matrices is which."""
        if len(readings) != 2 or readings[0] != readings[1][::-1]:
            return False
        one, other = (self.tensors[name] for name in readings[0] if name)
        return torch.equal(one, other)

    def _refuse_ends(self, cell: _Cell) -> None:
        message = (
            f"has no matrices that fit as ends of a {cell.name} with {cell.hidden} units that reads {cell.inputs} "
            f"numbers: the output layer must be (V, {cell.hidden}) for V symbols, the embedding (V, {cell.inputs}), "
            f"and without embedding V is {cell.inputs}; it has {self._listed(self._ends()) or 'none'}"
        )
        shared = [name for name in self._ends() if self.tensors[name].shape[1] == cell.hidden == cell.inputs]
        if len(shared) == 1:
            message += f"; if both ends share {shared[0]}, give --rename {shared[0]}={EMBEDDING},{OUTPUT}"
        raise self._error(message)

    def _refuse_ambiguity(self, readings: Sequence[tuple[str | None, str]]) -> None:
        embeddings, outputs = (
            list(dict.fromkeys(name for name in names if name)) for names in zip(*readings, strict=True)
        )
        choices = [
            f"{ours} may be {' or '.join(self._listed([name]) for name in names)}"
            for ours, names in ((EMBEDDING, embeddings), (OUTPUT, outputs))
            if names and ours not in self.places
        ]
        raise self._error(
            f"leaves a choice: {', and '.join(choices)}; settle it with --rename {outputs[0]}={OUTPUT} or the like, "
            "and drop what the model does not need with --rename NAME="
        )

    def _as_float32(self, name: str) -> tuple[Tensor, bool]:
        """A tensor's own copy as f32, and whether every value is what it was."""
        tensor = self.tensors[name]
        if tensor.layout != torch.strided or tensor.is_meta or not tensor.dtype.is_floating_point:
            kind = "meta" if tensor.is_meta else tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise self._error(f"has {name} as {kind}; weights must be plain tensors of floating-point numbers")
        weight = tensor.detach().cpu().to(torch.float32, copy=True).contiguous()
        if not weight.isfinite().all():
            beyond = tensor.dtype == torch.float64 and bool(tensor.isfinite().all())
            raise self._error(f"has {name}, which holds {'values beyond float32' if beyond else 'NaN or infinity'}")
        return weight, tensor.dtype != torch.float64 or torch.equal(weight.double(), tensor.detach().cpu())

    def _free(self) -> list[str]:
        """The names without a place, in the checkpoint's order."""
        placed = set(self.places.values())
        return [name for name in self.tensors if name not in placed]

    def _ends(self) -> list[str]:
        """The matrices that are not recurrent."""
        recurrent = {theirs for ours, theirs in self.places.items() if ours.startswith("rnn.")}
        return [name for name, tensor in self.tensors.items() if tensor.ndim == 2 and name not in recurrent]

    def _tensor(self, ours: str) -> Tensor:
        return self.tensors[self.places[ours]]

    def _described(self, ours: str) -> str:
        theirs = self.places[ours]
        return f"{theirs} {tuple(self.tensors[theirs].shape)}" + (f" as {ours}" if theirs != ours else "")

    def _listed(self, names: Iterable[str]) -> str:
        listed = [f"{name} {tuple(self.tensors[name].shape)}" for name in names]
        more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
        return ", ".join(listed[:10]) + more

    def _error(self, message: str) -> ForeignError:
        return ForeignError(f"{self.source} {message}")


def _role(name: str) -> str | None:
    """What the last telling part of a tensor's name says it is: the embedding, the output weight, or neither."""
    for part in reversed(name.lower().split(".")):
        words = set(re.findall(r"[a-z]+", part))
        embeds = "embed" in part or bool(words & _EMBEDDING_WORDS)
        puts_out = bool(words & _OUTPUT_WORDS)
        if embeds != puts_out:
            return EMBEDDING if embeds else OUTPUT
    return None


def _with_z_negated(weights: Mapping[str, Tensor], cell: _Cell) -> dict[str, Tensor]:
    """A GRU's recurrent weights in the other update convention."""
    turned: dict[str, Tensor] = {}
    for layer in range(cell.layers):
        names = [f"rnn.{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w_ih, w_hh, b_ih, b_hh = names
        own = Weights(weights[w_ih], weights[w_hh], weights.get(b_ih), weights.get(b_hh))
        others = other_update_convention(own)
        turned |= {name: value for name, value in zip(names, others, strict=True) if value is not None}
    return turned


def _state_dict_in(content: object, source: str | Path) -> dict[str, Tensor]:
    """The state dict that `content` is, or the one that lies in it. Raises ForeignError."""
    if _is_state_dict(content):
        return dict(content)  # type: ignore[call-overload, no-any-return]  # a mapping, as just seen
    if not isinstance(content, Mapping):
        raise ForeignError(f"{source} holds a {type(content).__name__}, not a state dict; save one with {_SAVE_IT}")
    inner = {str(key): value for key, value in content.items() if _is_state_dict(value)}
    recurrent = {key: value for key, value in inner.items() if any("weight_hh" in name for name in value)}
    choice = recurrent or inner
    if len(choice) == 1:
        return dict(*choice.values())
    if choice:
        raise ForeignError(f"{source} holds several state dicts ({', '.join(choice)}); save one alone with {_SAVE_IT}")
    strange = next((repr(key) for key, value in content.items() if not isinstance(value, Tensor)), "nothing")
    raise ForeignError(
        f"{source} is no state dict: it holds {strange} instead of tensors by name; save one with {_SAVE_IT}"
    )


def _is_state_dict(content: object) -> bool:
    """Whether `content` is tensors by name, and at least one."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _load_pickled_weights(path: Path) -> object:
    """What is in a file by torch.save, if that is weights alone. Raises ForeignError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
                if archive.testzip() is not None:
                    raise ForeignError(f"{path} is damaged: a checksum in it is wrong")
        with warnings.catch_warnings(action="ignore"):  # PyTorch's own, about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except ForeignError:
        raise
    except pickle.UnpicklingError:
        raise ForeignError(
            f"{path} holds more than weights, or is no PyTorch file; pickled objects are never loaded, for that runs "
            f"whatever code is in them: save the weights alone, with {_SAVE_IT}"
        ) from None
    except Exception as error:  # torch.load raises many kinds, according to which byte is wrong
        raise ForeignError(
            f"{path} is damaged, or neither a safetensors file nor a state dict by torch.save "
            f"({type(error).__name__}); save one with {_SAVE_IT}"
        ) from None


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ForeignError(f"{name} must be {' or '.join(choices)}, not {value!r}")
