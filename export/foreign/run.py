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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rill.export.foreign.files import (
    ForeignError,
    load_state_dict_file,
    load_vocabulary_file,
    state_dict_in,
    vocabulary_of,
)
from rill.export.foreign.placing import EMBEDDING, Cell, Checkpoint
from rill.export.pipeline import Exported, export_loaded
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.nets.cells import Weights, other_update_convention
from rill.train.record.run import Run
from rill.vocabulary import Vocabulary

RESETS = ("after", "before")  # the recurrent product
UPDATES = ("keeps", "replaces")  # what an update gate of 1 does to the state


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
    found = Checkpoint(str(source), state_dict_in(state_dict, source), {})
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


def _vocabulary(vocabulary: Sequence[str] | str | Path) -> Vocabulary:
    if isinstance(vocabulary, str | Path):
        return load_vocabulary_file(vocabulary)
    return vocabulary_of(vocabulary, "the vocabulary")


def _with_z_negated(weights: Mapping[str, Tensor], cell: Cell) -> dict[str, Tensor]:
    """A GRU's recurrent weights in the other update convention."""
    turned: dict[str, Tensor] = {}
    for layer in range(cell.layers):
        names = [f"rnn.{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w_ih, w_hh, b_ih, b_hh = names
        own = Weights(weights[w_ih], weights[w_hh], weights.get(b_ih), weights.get(b_hh))
        others = other_update_convention(own)
        turned |= {name: value for name, value in zip(names, others, strict=True) if value is not None}
    return turned


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ForeignError(f"{name} must be {' or '.join(choices)}, not {value!r}")
