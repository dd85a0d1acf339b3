"""Turn a foreign checkpoint, a PyTorch GRU, LSTM or tanh-RNN that Rill did not train, into a run that can be exported.

A state dict holds the weights but not the model, so the model is inferred from names and shapes. Weights that the model
computes from other tensors, as weight norm does, are computed first. Recurrent weights are recognised by PyTorch's
names (`weight_ih_l0`, …, or `weight_ih` in a cell); they determine cell, layers, hidden size and biases. N-gram tables
are recognised by Rill's names (`ngrams.2.weight`, …). The embedding and the output layer are recognised by shape, and
where shapes are ambiguous by name. Anything unclear or left over is
an error that says what it is.

Some properties leave no trace in the weights and are assumed: gates stacked in PyTorch's order, tanh in an RNN (not
relu), plain layers one after another (no residual sums, no activation between), an embedding that is a plain table (no
`max_norm`), states that start at zero, and, unless told otherwise, a GRU as in `nn.GRU`. Export compares the graphs
with the model made here, which equals the foreign one if these assumptions hold.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rill.export.errors import ForeignError
from rill.export.foreign.files import Checkpoint, checkpoint_of, load_checkpoint
from rill.export.foreign.folding import fold
from rill.export.foreign.placing import EMBEDDING, Cell, Placement
from rill.export.foreign.preview import preview
from rill.export.foreign.vocabularies import choose_vocabulary, load_vocabulary_file, vocabulary_of
from rill.export.jobs import CHARACTERS_ONLY, RESETS, UPDATES, Symbols
from rill.export.pipeline import Exported, export_loaded
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.cells import Weights, other_update_convention
from rill.train.record.run import Run
from rill.vocabulary import UNKNOWN, Vocabulary

log = logging.getLogger("rill.export")


@dataclass(frozen=True)
class ForeignRun(Run):
    """A run made of a foreign checkpoint. `folder` is the checkpoint's file; `training` is a placeholder.

    `sources` maps each tensor of Rill to its name in the checkpoint; `notes` describe what was changed, in words.
    """

    sources: Mapping[str, str]
    notes: tuple[str, ...]


def export_state_dict(
    state_dict: Mapping[str, object] | str | Path,
    vocabulary: Sequence[str] | Mapping[object, object] | str | Path | None,
    out: str | Path,
    name: str | None = None,
    *,
    precision: str = "fp32",
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
    text: str | Path | None = None,
    tokenizer: str = Symbols.tokenizer,
    start: str = "",
    ends: Sequence[str] = (),
    unknown: str = "",
    force: bool = False,
    allow_loss: bool = False,
) -> Exported:
    """Export a foreign model as the bundle `out`/NAME, verified like every export.

    `state_dict` is the result of `model.state_dict()` or a file of it; `vocabulary` the symbols in id order,
    {symbol: id}, {id: symbol}, a file of one of them, or None for the one that lies in the checkpoint. `tokenizer`
    ("chars", "longest", "smiles" or "regex:PATTERN"), `start`, `ends` and `unknown` are as in
    `rill.export.jobs.Symbols`. NAME defaults to the file's name without its suffix. `rename`, `reset` and `update` are
    those of `run_of_state_dict`; `precision`, `force` and `allow_loss` those of `export_loaded`. `text` is a file that
    the model is measured on. What was changed or looks wrong, and a sample, go to the logger `rill.export`. Raises
    ForeignError and the errors of `export_loaded`.
    """
    symbols = Symbols(tokenizer, start, tuple(ends), unknown)
    if isinstance(state_dict, str | Path):
        run = foreign_run(state_dict, vocabulary, rename, reset, update, symbols)
    else:
        run = run_of_state_dict(state_dict, _vocabulary(vocabulary, symbols), rename, reset, update, symbols=symbols)
        if name is None:
            raise ForeignError("a state dict has no name; give `name` for its bundle")
    for note in (*run.notes, *preview(run, text)):
        log.log(logging.WARNING if note.startswith("WARNING") else logging.INFO, "%s: %s", run.folder, note)
    name = run.folder.stem if name is None else name
    return export_loaded(run, name, out, precision=precision, force=force, allow_loss=allow_loss)


def foreign_run(
    path: str | Path,
    vocabulary: Sequence[str] | Mapping[object, object] | str | Path | None,
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
    symbols: Symbols = CHARACTERS_ONLY,
) -> ForeignRun:
    """Make a run of a checkpoint file and a vocabulary; see `run_of_state_dict`. Raises ForeignError."""
    given = _vocabulary(vocabulary, symbols)  # first, because it is quick to read
    return _run_of(load_checkpoint(path), given, rename, reset, update, path, symbols)


def run_of_state_dict(
    state_dict: Mapping[str, object],
    vocabulary: Vocabulary | None,
    rename: Mapping[str, str] | None = None,
    reset: str = "after",
    update: str = "keeps",
    source: str | Path = "<state dict>",
    symbols: Symbols = CHARACTERS_ONLY,
) -> ForeignRun:
    """Make a run of the generator that has these weights, with its tensors under Rill's names. Raises ForeignError.

    `state_dict` maps names to tensors, or contains such a mapping (many checkpoints do, under "state_dict" or "model").
    `vocabulary` None means the one that lies beside it, which is read as `symbols` says. `rename` maps a tensor of it
    to Rill's name (several with commas, "" to drop it): `embedding.weight`, `rnn.weight_ih_l0`, …, `linear.weight`,
    `linear.bias`, and for n-gram tables as rill.ngrams defines them `ngrams.2.weight`, …. `reset` is where a GRU's
    reset gate acts, `after` the recurrent product or `before` it; `update` is what its update gate does to the state
    when it is 1: it `keeps` it, as in PyTorch, Keras and ONNX, or `replaces` it by the candidate, as in Chung et al.
    2014.

    Tensors of other types are converted to float32, and noted if that changed a value. `source` appears in messages.
    """
    return _run_of(checkpoint_of(state_dict, source), vocabulary, rename, reset, update, source, symbols)


def _run_of(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary | None,
    rename: Mapping[str, str] | None,
    reset: str,
    update: str,
    source: str | Path,
    symbols: Symbols,
) -> ForeignRun:
    _require_one_of("reset", reset, RESETS)
    _require_one_of("update", update, UPDATES)
    tensors, folded = fold(checkpoint.tensors, str(source))
    found = Placement(str(source), tensors)
    found.rename(rename or {})
    found.refuse_unsupported()
    found.assign_recurrent()
    found.assign_tables()
    cell = found.cell()
    found.assign_ends(cell, None if vocabulary is None else len(vocabulary))
    found.assign_output_bias()
    found.refuse_leftovers()
    vocabulary, told = _settle_vocabulary(vocabulary, checkpoint, found.symbols, str(source), symbols)
    weights, notes = found.weights(vocabulary, cell)
    ngrams, ngram_rows = found.ngrams(len(vocabulary))
    try:
        model = ModelConfig(
            cell=cell.name,
            reset=reset,
            layers=cell.layers,
            hidden=cell.hidden,
            embedding=weights[EMBEDDING].shape[1] if EMBEDDING in weights else 0,
            bias=cell.bias,
            ngrams=ngrams,
            ngram_rows=ngram_rows,
        )
    except ValueError as error:
        raise ForeignError(f"{source}: {error}") from None
    found.check_shapes(weights, model, len(vocabulary))
    if update == "replaces":
        if cell.name != "gru":
            raise ForeignError(f"{source}: update 'replaces' is for GRUs; {cell.name} has no update gate")
        weights |= _with_z_negated(weights, cell)
    notes = (*checkpoint.notes, *folded, *told, *notes)
    # The length of training is unknown, but a TrainingConfig must have one.
    return ForeignRun(Path(source), model, TrainingConfig(steps=1), vocabulary, (), weights, found.sources, notes)


def _vocabulary(
    vocabulary: Sequence[str] | Mapping[object, object] | str | Path | None, symbols: Symbols
) -> Vocabulary | None:
    if isinstance(vocabulary, str | Path):
        return load_vocabulary_file(vocabulary, symbols)
    return None if vocabulary is None else vocabulary_of(vocabulary, "the vocabulary", symbols)


def _settle_vocabulary(
    given: Vocabulary | None, checkpoint: Checkpoint, symbols: int, source: str, how: Symbols
) -> tuple[Vocabulary, list[str]]:
    """The vocabulary that was given, or else the checkpoint's; and notes about the latter. Raises ForeignError."""
    if given is None:
        found = choose_vocabulary(checkpoint.vocabularies, symbols, source)
        return vocabulary_of(found.symbols, f"{source}{found.where}", how), [
            f"the vocabulary is the one of {len(found.symbols)} symbols at {found.where} in the file"
        ]
    fitting = [found for found in checkpoint.vocabularies if len(found.symbols) == symbols]
    names = tuple(how.unknown if symbol == UNKNOWN and how.unknown else symbol for symbol in given.symbols)
    if fitting and all(found.symbols != names for found in fitting):
        other = fitting[0]
        at = next(index for index, symbol in enumerate(other.symbols) if names[index : index + 1] != (symbol,))
        return given, [
            f"WARNING: the file has another vocabulary, at {other.where}, where the id {at} is {other.symbols[at]!r}; "
            "leave out --vocabulary to use it"
        ]
    return given, []


def _with_z_negated(weights: Mapping[str, Tensor], cell: Cell) -> dict[str, Tensor]:
    """Convert a GRU's recurrent weights to the other update convention."""
    converted: dict[str, Tensor] = {}
    for layer in range(cell.layers):
        names = [f"rnn.{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w_ih, w_hh, b_ih, b_hh = names
        own = Weights(weights[w_ih], weights[w_hh], weights.get(b_ih), weights.get(b_hh))
        others = other_update_convention(own)
        converted |= {name: value for name, value in zip(names, others, strict=True) if value is not None}
    return converted


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ForeignError(f"{name} must be {' or '.join(choices)}, not {value!r}")
