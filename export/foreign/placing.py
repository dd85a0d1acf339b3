"""Assign foreign tensors to Rill's names: by renames, PyTorch's recurrent names, shapes and words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from rill.export.errors import ForeignError
from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel
from rill.vocabulary import Vocabulary

EMBEDDING, OUTPUT, OUTPUT_BIAS = "embedding.weight", "linear.weight", "linear.bias"
_OURS = re.compile(r"embedding\.weight|linear\.(weight|bias)|rnn\.(weight|bias)_[ih]h_l\d{1,4}")
_RECURRENT = re.compile(r"(?:(?P<module>.*)\.)?(?P<tensor>(weight|bias)_[ih]h)(_l(?P<layer>\d{1,4}))?")
_OTHER_RECURRENT = re.compile(r"(?:.*\.)?(weight|bias)_([ih]h|hr)(_l\d+)?(?P<reverse>_reverse)?")
_CELLS = {1: "rnn", 3: "gru", 4: "lstm"}  # by the number of gates

# Words of a module's name that tell the role of its matrix ("char_emb2" is char, emb); "embed" may be part of a word.
_EMBEDDING_WORDS = {"emb", "embs", "encoder", "enc", "wte", "lookup"}
_OUTPUT_WORDS = {"fc", "linear", "lin", "out", "output", "decoder", "dec", "head", "proj", "projection", "dense"}
_OUTPUT_WORDS |= {"classifier", "logits", "logit", "softmax", "generator"}


class Cell(NamedTuple):
    """Properties of the model that the recurrent weights determine."""

    name: str
    layers: int
    hidden: int
    inputs: int  # the width of what the first layer reads
    bias: bool


@dataclass
class Placement:
    """The tensors of a checkpoint and their assignment: `sources` maps Rill's name to the checkpoint's."""

    source: str
    tensors: dict[str, Tensor]
    sources: dict[str, str]

    def rename(self, names: Mapping[str, str]) -> None:
        """Assign the tensors in `names`, and drop those renamed to nothing."""
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
                self._assign(name, theirs)
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if names.get(name) != ""}

    def refuse_unsupported(self) -> None:
        """Refuse recurrent weights that a generator cannot have."""
        for name in self._free():
            match = _OTHER_RECURRENT.fullmatch(name)
            if match and match["reverse"]:
                raise self._error(f"has {name}: a bidirectional model reads ahead, so it cannot generate")
            if match and match[2] == "hr":
                raise self._error(f"has {name}: an LSTM with projections (proj_size) cannot be expressed here")

    def assign_recurrent(self) -> None:
        """Assign tensors with PyTorch's recurrent names: of one module, or of numbered modules as layers."""
        modules: dict[str, list[re.Match[str]]] = {}
        for name in self._free():
            if match := _RECURRENT.fullmatch(name):
                modules.setdefault(match["module"] or "", []).append(match)
        order = list(modules) if len(modules) < 2 else self._numbered(modules)
        for index, module in enumerate(order):
            for match in modules[module]:
                layer = index + int(match["layer"] or 0)
                self._assign(f"rnn.{match['tensor']}_l{layer}", match[0])

    def cell(self) -> Cell:
        """Infer cell, sizes and biases from the shapes of the recurrent weights."""
        layers = 1 + max((int(name.split("_l")[1]) for name in self.sources if name.startswith("rnn.")), default=-1)
        if not layers:
            raise self._error(
                "has no recurrent weights under PyTorch's names (weight_ih_l0, weight_hh_l0, …); if they have other "
                f"names, give --rename NAME=rnn.weight_ih_l0 and so on; it has {self._listed(self.tensors)}"
            )
        for layer, part in product(range(layers), ("weight_ih", "weight_hh")):
            name = f"rnn.{part}_l{layer}"
            if name not in self.sources:
                raise self._error(f"has no {part} of layer {layer}, but other weights up to layer {layers - 1}")
            if self._tensor(name).ndim != 2:
                raise self._error(f"has {self._described(name)}, which is not a matrix")
        rows, hidden = self._tensor("rnn.weight_hh_l0").shape
        if not hidden or rows % hidden or rows // hidden not in _CELLS:
            raise self._error(
                f"has {self._described('rnn.weight_hh_l0')}, where rows and columns must be (H, H) for an RNN, "
                "(3H, H) for a GRU or (4H, H) for an LSTM"
            )
        inputs = self._tensor("rnn.weight_ih_l0").shape[1]
        bias = any(name.startswith("rnn.bias") for name in self.sources)
        return Cell(_CELLS[rows // hidden], layers, hidden, inputs, bias)

    def assign_ends(self, cell: Cell, symbols: int) -> None:
        """Assign the output layer, and the embedding unless the input is one-hot."""
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
            self.sources[EMBEDDING] = embedding
        self.sources[OUTPUT] = output

    def assign_output_bias(self) -> None:
        """Assign the bias beside the output weight, or else the only free vector that is named a bias and fits."""
        if OUTPUT_BIAS in self.sources:
            return
        output = self.sources[OUTPUT]
        beside = output.removesuffix("weight") + "bias"
        fitting = [name for name in self._free() if self.tensors[name].shape == self.tensors[output].shape[:1]]
        if output.endswith("weight") and beside in self._free():
            self.sources[OUTPUT_BIAS] = beside
        elif len(biases := [name for name in fitting if "bias" in name.rpartition(".")[2]]) == 1:
            self.sources[OUTPUT_BIAS] = biases[0]

    def refuse_leftovers(self) -> None:
        """Refuse tensors without an assignment: they could mean another computation."""
        if left := self._free():
            drops = " ".join(f"--rename {name}=" for name in left[:3]) + " …" * (len(left) > 3)
            raise self._error(
                f"has tensors that no model here uses: {self._listed(left)}; rename them, or, if the model computes "
                f"the same without them, drop them with {drops}"
            )

    def weights(self, vocabulary: Vocabulary, cell: Cell) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The weights as f32 under Rill's names, zeros for missing biases, and notes about both."""
        rows = len(self._tensor(OUTPUT))
        if rows != len(vocabulary):
            raise self._error(
                f"has {self._described(OUTPUT)}, so a model of {rows} symbols, but the vocabulary has {len(vocabulary)}"
            )
        converted = {ours: self._as_float32(theirs) for ours, theirs in self.sources.items()}
        rounded = [self.sources[ours] for ours, (_, exact) in converted.items() if not exact]
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
        """Refuse weights whose shapes are not those of the model."""
        with torch.device("meta"):  # shapes without storage
            expected = CharacterModel(model, symbols).state_dict()
        for name, tensor in expected.items():
            if weights[name].shape != tensor.shape:
                raise self._error(
                    f"has {self._described(name)}, but a {model.cell} of {model.hidden} units has "
                    f"{tuple(tensor.shape)} there"
                )

    def _assign(self, ours: str, theirs: str) -> None:
        if self.sources.setdefault(ours, theirs) != theirs:
            raise self._error(
                f"has two tensors for {ours}, {self.sources[ours]} and {theirs}; drop one with --rename {theirs}="
            )

    def _numbered(self, modules: Mapping[str, list[re.Match[str]]]) -> list[str]:
        """Sort modules by number: single layers that differ only in it (`cells.0`, `cells.1`). Raises ForeignError."""
        single = all(int(match["layer"] or 0) == 0 for matches in modules.values() for match in matches)
        patterns = {re.sub(r"\d+", "#", module) for module in modules}
        numbers = {tuple(map(int, re.findall(r"\d{1,9}", module))): module for module in modules}
        if not single or len(patterns) > 1 or len(numbers) < len(modules):
            listed = ", ".join(sorted(modules))
            example = next(iter(modules.values()))[0]
            raise self._error(
                f"has several recurrent modules ({listed}); assign the layers with --rename {example[0]}="
                f"rnn.{example['tensor']}_l0 and so on, or drop tensors with --rename NAME="
            )
        return [numbers[key] for key in sorted(numbers)]

    def _readings(self, cell: Cell) -> list[tuple[str | None, str]]:
        """All pairs of embedding (None for one-hot input) and output weight that fit the cell and each other."""
        matrices = [name for name in self._free() if self.tensors[name].ndim == 2]
        embeddings: Iterable[str | None] = [
            None,
            *(name for name in matrices if self.tensors[name].shape[1] == cell.inputs),
        ]
        outputs: Iterable[str] = [name for name in matrices if self.tensors[name].shape[1] == cell.hidden]
        if EMBEDDING in self.sources:
            embeddings = [self.sources[EMBEDDING]]
        if OUTPUT in self.sources:
            outputs = [self.sources[OUTPUT]]
        shared = EMBEDDING in self.sources and self.sources[EMBEDDING] == self.sources.get(OUTPUT)  # renamed to both
        return [
            (embedding, output)
            for embedding, output in product(embeddings, outputs)
            if (embedding != output or shared) and self._fit(embedding, output, cell)
        ]

    def _fit(self, embedding: str | None, output: str, cell: Cell) -> bool:
        symbols = self.tensors[output].shape[:1]
        if self.tensors[output].shape != (*symbols, cell.hidden):
            return False
        if embedding is None:
            return symbols == (cell.inputs,)
        return self.tensors[embedding].shape == (*symbols, cell.inputs)

    def _is_contradicted(self, pair: tuple[str | None, str], cell: Cell) -> bool:
        """Whether a name contradicts the role of its tensor, where the shape would allow both."""
        if cell.inputs != cell.hidden:
            return False
        embedding, output = (None if name in self.sources.values() else name for name in pair)
        return (embedding is not None and _role(embedding) == OUTPUT) or (
            output is not None and _role(output) == EMBEDDING
        )

    def _are_tied(self, readings: Sequence[tuple[str | None, str]]) -> bool:
        """Whether the readings differ only in the roles of two equal matrices."""
        if len(readings) != 2 or readings[0] != readings[1][::-1]:
            return False
        one, other = (self.tensors[name] for name in readings[0] if name)
        return torch.equal(one, other)

    def _refuse_ends(self, cell: Cell) -> None:
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
            if names and ours not in self.sources
        ]
        raise self._error(
            f"is ambiguous: {', and '.join(choices)}; settle it with --rename {outputs[0]}={OUTPUT} or the like, "
            "and drop what the model does not need with --rename NAME="
        )

    def _as_float32(self, name: str) -> tuple[Tensor, bool]:
        """A copy of a tensor as f32, and whether every value is unchanged."""
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
        """The names without an assignment, in the checkpoint's order."""
        assigned = set(self.sources.values())
        return [name for name in self.tensors if name not in assigned]

    def _ends(self) -> list[str]:
        """The names of matrices that are not recurrent."""
        recurrent = {theirs for ours, theirs in self.sources.items() if ours.startswith("rnn.")}
        return [name for name, tensor in self.tensors.items() if tensor.ndim == 2 and name not in recurrent]

    def _tensor(self, ours: str) -> Tensor:
        return self.tensors[self.sources[ours]]

    def _described(self, ours: str) -> str:
        theirs = self.sources[ours]
        return f"{theirs} {tuple(self.tensors[theirs].shape)}" + (f" as {ours}" if theirs != ours else "")

    def _listed(self, names: Iterable[str]) -> str:
        listed = [f"{name} {tuple(self.tensors[name].shape)}" for name in names]
        more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
        return ", ".join(listed[:10]) + more

    def _error(self, message: str) -> ForeignError:
        return ForeignError(f"{self.source} {message}")


def _role(name: str) -> str | None:
    """The role that a tensor's name tells, by its last telling part: the embedding, the output weight, or None."""
    for part in reversed(name.lower().split(".")):
        words = set(re.findall(r"[a-z]+", part))
        embeds = "embed" in part or bool(words & _EMBEDDING_WORDS)
        outputs = bool(words & _OUTPUT_WORDS)
        if embeds != outputs:
            return EMBEDDING if embeds else OUTPUT
    return None
