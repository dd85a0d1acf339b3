"""Assign foreign tensors to Rill's names: by renames, PyTorch's recurrent names, shapes and words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from rill.export.errors import ForeignError
from rill.export.foreign.reasons import in_words, of_another_kind, of_ends
from rill.ngrams import DEFAULT_ROWS, MAX_NGRAMS, is_exact
from rill.train.config import ModelConfig
from rill.train.nets.model import CharacterModel
from rill.vocabulary import Vocabulary

EMBEDDING, OUTPUT, OUTPUT_BIAS = "embedding.weight", "linear.weight", "linear.bias"
_OURS = re.compile(r"embedding\.weight|linear\.(weight|bias)|rnn\.(weight|bias)_[ih]h_l\d{1,4}|ngrams\.[2-9]\.weight")
_TABLE = re.compile(r"(?:.*\.)?(ngrams\.[2-9]\.weight)")
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
    sources: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)  # what a rename to nothing has removed

    def rename(self, names: Mapping[str, str]) -> None:
        """Assign the tensors in `names`, and drop those renamed to nothing."""
        for theirs, ours in names.items():
            if theirs not in self.tensors:
                raise self._error(f"has no tensor {theirs!r} to rename; it has {self._listed(self.tensors)}")
            for name in ours.split(",") if ours else ():
                if not _OURS.fullmatch(name):
                    raise ForeignError(
                        f"cannot rename {theirs} to {name!r}: the names are {EMBEDDING}, rnn.weight_ih_l0, "
                        f"rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0 (l1, … for further layers), {OUTPUT}, "
                        f"{OUTPUT_BIAS} and ngrams.2.weight (3, … for longer n-grams)"
                    )
                self._assign(name, theirs)
        self.dropped = [name for name in self.tensors if names.get(name) == ""]
        self._require_tied_alone()
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

    def assign_tables(self) -> None:
        """Assign n-gram tables, which have Rill's names, perhaps within a module."""
        for name in self._free():
            if match := _TABLE.fullmatch(name):
                self._assign(match[1], name)

    def ngrams(self, symbols: int) -> tuple[int, int]:
        """Infer the longest n-grams that have a table, 1 if there are none, and the rows of tables that they share."""
        tables = [name for name in self.sources if name.startswith("ngrams.")]
        longest = 1 + len(tables)
        if len(tables) >= MAX_NGRAMS:
            raise self._error(f"has n-gram tables up to {max(tables)}; a model here has them up to {MAX_NGRAMS}-grams")
        shared = DEFAULT_ROWS
        for order in range(longest, 1, -1):
            name = f"ngrams.{order}.weight"
            if name not in self.sources:
                raise self._error(f"has no {name}, but {' and '.join(sorted(tables))}; a model here has all up to one")
            if self._tensor(name).ndim != 2 or not len(self._tensor(name)):
                raise self._error(f"has {self._described(name)}, which is not a matrix of one row or more")
            if not is_exact(order, symbols):  # the longest n-grams first, so that they all agree with the last one
                shared = len(self._tensor(name))
        return longest, shared

    def cell(self) -> Cell:
        """Infer cell, sizes and biases from the shapes of the recurrent weights."""
        layers = 1 + max((int(name.split("_l")[1]) for name in self.sources if name.startswith("rnn.")), default=-1)
        if not layers:
            reason = of_another_kind(self.tensors)
            raise self._error(
                f"has no recurrent weights under PyTorch's names (weight_ih_l0, weight_hh_l0, …); "
                f"{reason or 'if they have other names, give --rename NAME=rnn.weight_ih_l0 and so on'}; it has "
                f"{self._listed(self.tensors)}"
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
        widths = [self._tensor(f"rnn.weight_hh_l{layer}").shape[1] for layer in range(layers)]
        if len(set(widths)) > 1:
            raise self._error(
                f"has layers of different widths, {', '.join(map(str, widths))} units; the layers of a model here have "
                "one width"
            )
        inputs = self._tensor("rnn.weight_ih_l0").shape[1]
        bias = any(name.startswith("rnn.bias") for name in self.sources)
        return Cell(_CELLS[rows // hidden], layers, hidden, inputs, bias)

    def assign_ends(self, cell: Cell, symbols: int | None) -> None:
        """Assign the output layer, and the embedding unless the input is one-hot.

        `symbols` is the size of the vocabulary, if that is known.
        """
        readings = self._readings(cell)
        if not readings:
            self._refuse_ends(cell, symbols)
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
            told = in_words({name: self.tensors[name] for name in left})
            raise self._error(
                f"has tensors that no model here uses: {self._listed(left)}{f' ({told})' if told else ''}; a model "
                "that computes with them cannot be exported; --rename NAME= drops what generating never uses"
            )

    @property
    def symbols(self) -> int:
        """The number of symbols: rows of the output weight."""
        return len(self._tensor(OUTPUT))

    def weights(self, vocabulary: Vocabulary, cell: Cell) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The weights as f32 under Rill's names, zeros for missing biases, and notes about both."""
        rows = self.symbols
        if rows != len(vocabulary):
            padding = (
                "; if a row is padding that no text has, give its id a name, such as \"<pad>\", and say --end '<pad>'"
            )
            raise self._error(
                f"has {self._described(OUTPUT)}, so a model of {rows} symbols, but the vocabulary has {len(vocabulary)}"
                f"{padding if 0 < rows - len(vocabulary) <= 4 else ''}"
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
        if self.dropped:
            notes.append(f"dropped by --rename: {', '.join(self.dropped)}")
        return weights | zeros, tuple(notes)

    def check_shapes(self, weights: Mapping[str, Tensor], model: ModelConfig, symbols: int) -> None:
        """Refuse weights whose shapes are not those of the model."""
        with torch.device("meta"):  # shapes without storage
            expected = CharacterModel(model, symbols).state_dict()
        for name, tensor in expected.items():
            if weights[name].shape != tensor.shape:
                raise self._error(
                    f"has {self._described(name)}, but a {model.cell} of {model.hidden} units"
                    f"{f' and {symbols} symbols' if name.startswith('ngrams.') else ''} has {tuple(tensor.shape)} there"
                )

    def _assign(self, ours: str, theirs: str) -> None:
        if self.sources.setdefault(ours, theirs) != theirs:
            raise self._error(
                f"has two tensors for {ours}, {self.sources[ours]} and {theirs}; drop the one that the model does not "
                "use with --rename NAME="
            )

    def _numbered(self, modules: Mapping[str, list[re.Match[str]]]) -> list[str]:
        """Sort modules by number: single layers that differ only in it (`cells.0`, `cells.1`). Raises ForeignError."""
        single = all(int(match["layer"] or 0) == 0 for matches in modules.values() for match in matches)
        patterns = {re.sub(r"\d+", "#", module) for module in modules}
        numbers = {tuple(map(int, re.findall(r"\d{1,9}", module))): module for module in modules}
        if not single or len(patterns) > 1 or len(numbers) < len(modules):
            listed = ", ".join(sorted(modules))
            raise self._error(
                f"has several recurrent modules ({listed}); if they are layers, one after another, say which is which "
                "with --rename NAME=rnn.weight_ih_l0 and so on; two models that work together cannot be expressed here"
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

    def _refuse_ends(self, cell: Cell, symbols: int | None) -> None:
        ends = {name: self.tensors[name] for name in self._ends()}
        if reason := of_ends(ends, cell.name, cell.hidden, cell.inputs, symbols):
            raise self._error(f"cannot be exported: {reason}")
        message = (
            f"has no matrices that fit as ends of a {cell.name} with {cell.hidden} units that reads {cell.inputs} "
            f"numbers: the output layer must be (V, {cell.hidden}) for V symbols, the embedding (V, {cell.inputs}), "
            f"and without embedding V is {cell.inputs}; it has {self._listed(ends) or 'none'}"
        )
        # Only where nothing else is left that a model with two ends would have.
        if len(ends) == 1 and cell.hidden == cell.inputs and all(tensor.ndim == 1 for tensor in self._unplaced(ends)):
            ((name, matrix),) = ends.items()
            if matrix.shape[1] == cell.hidden:
                message += f"; if both ends share {name}, give --rename {name}={EMBEDDING},{OUTPUT}"
        raise self._error(message)

    def _unplaced(self, ends: Mapping[str, Tensor]) -> list[Tensor]:
        """Tensors that are neither recurrent nor ends."""
        return [self.tensors[name] for name in self._free() if name not in ends]

    def _require_tied_alone(self) -> None:
        """Refuse one tensor as both ends beside matrices that only a model with two ends has."""
        if self.sources.get(EMBEDDING) is None or self.sources.get(EMBEDDING) != self.sources.get(OUTPUT):
            return
        others = [
            name
            for name, tensor in self.tensors.items()
            if tensor.ndim == 2 and name not in self.sources.values() and not _OTHER_RECURRENT.fullmatch(name)
        ]
        if others:
            raise self._error(
                f"has {self._listed(others)} beside {self.sources[EMBEDDING]}, so that is not both the embedding and "
                "the output layer; a model that has more matrices cannot be expressed here"
            )

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
            f"is ambiguous: {', and '.join(choices)}; say which with --rename NAME={EMBEDDING} or "
            f"--rename NAME={OUTPUT}, as the model's forward uses them"
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
