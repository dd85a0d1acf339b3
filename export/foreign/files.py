"""Foreign files: the tensors of a PyTorch or safetensors checkpoint, and what else lies in it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rill.export.errors import ForeignError
from rill.export.foreign.checkpoints import CheckpointError, StoredTensor, UnreadTensor, read_checkpoint
from rill.export.foreign.kinds import SAVE, kind_of_folder, other_kind
from rill.export.foreign.pickles import Instance
from rill.export.foreign.state_dicts import AnyTensor, StateDict, find_state_dicts
from rill.export.foreign.vocabularies import FoundVocabulary, find_vocabularies

_SAVE_IT = f"{SAVE} or safetensors.torch.save_file(model.state_dict(), ...)"
_START = 4096  # bytes by which a file's kind is recognised


class Checkpoint(NamedTuple):
    """The tensors of a model by name, the vocabularies beside them, and what was noticed, in words."""

    tensors: dict[str, Tensor]
    vocabularies: list[FoundVocabulary]
    notes: tuple[str, ...] = ()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors, torch.save or pickle file; nothing that is pickled in it runs. Raises ForeignError."""
    path = Path(path)
    if path.is_dir():
        raise ForeignError(f"{path} is {kind_of_folder(path)}")
    if path.exists() and not path.is_file():
        raise ForeignError(f"{path} is a pipe or a device; give a file")
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror}") from None
    if start[8:9] == b"{":  # in safetensors, JSON follows the length of the header; not so in a pickle or zip
        try:
            return Checkpoint(safetensors.torch.load(path.read_bytes()), [])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ForeignError(f"{path} is a damaged safetensors file: {error}") from None
    if kind := other_kind(path, start):
        raise ForeignError(f"{path} is {kind}")
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        raise ForeignError(f"{path} {error}; save it again with {_SAVE_IT}") from None
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror or error}") from None
    return checkpoint_of(content, path)


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by name; see `load_checkpoint`. Raises ForeignError."""
    return load_checkpoint(path).tensors


def checkpoint_of(content: object, source: str | Path) -> Checkpoint:
    """Find the model in `content`, a state dict or what holds one. Raises ForeignError if there is none, or several."""
    found = find_state_dicts(content)
    recurrent = [each for each in found if each.is_recurrent]
    choice = _different(recurrent or found)
    if not choice:
        raise ForeignError(f"{source} {_what_it_is(content)}; save one with {_SAVE_IT}")
    if len(choice) > 1 and not recurrent and len({each.parent for each in choice}) == 1:
        choice = [_joined(choice)]
    if len(choice) > 1:
        places = ", ".join(each.where or "the file itself" for each in choice[:8])
        raise ForeignError(f"{source} holds several state dicts ({places}); save one alone with {_SAVE_IT}")
    chosen = choice[0]
    if chosen.is_recurrent and not chosen.has_ends:
        chosen = _joined([chosen, *(each for each in found if each.parent == chosen.parent and not each.is_recurrent)])
    if chosen.refusal:
        raise ForeignError(f"{source}: {chosen.refusal}")
    tensors = {name: _loaded(tensor, name, source) for name, tensor in chosen.tensors.items()}
    counters = [name for name, tensor in tensors.items() if not tensor.ndim and not tensor.is_floating_point()]
    notes = list(chosen.notes)
    if ignored := [*chosen.ignored, *counters]:
        more = f" and {len(ignored) - 8} more" if len(ignored) > 8 else ""
        notes.append(f"not weights, so not read: {', '.join(ignored[:8])}{more}")
    weights = {name: tensor for name, tensor in tensors.items() if name not in counters}
    return Checkpoint(weights, find_vocabularies(content), tuple(notes))


def _loaded(tensor: AnyTensor, name: str, source: str | Path) -> Tensor:
    if isinstance(tensor, UnreadTensor):
        raise ForeignError(f"{source}: {name} is {tensor.kind}")
    try:
        return tensor.load() if isinstance(tensor, StoredTensor) else tensor
    except CheckpointError as error:
        raise ForeignError(f"{source} {error} ({name}); save it again with {_SAVE_IT}") from None
    except (RuntimeError, MemoryError) as error:
        raise ForeignError(f"{source}: {name} cannot be read ({type(error).__name__})") from None


def _different(found: list[StateDict]) -> list[StateDict]:
    """State dicts without copies, such as that of a module that lies beside it."""
    kept: list[StateDict] = []
    for each in sorted(found, key=lambda each: not each.is_module):  # a module says more
        if not any(_are_same(each, other) for other in kept):
            kept.append(each)
    return kept


def _are_same(one: StateDict, other: StateDict) -> bool:
    if one.tensors.keys() != other.tensors.keys():
        return False
    try:
        return all(_are_equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    except CheckpointError:
        return False


def _are_equal(*pair: AnyTensor) -> bool:
    first, second = (each.load() if isinstance(each, StoredTensor) else each for each in pair)
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or first.shape != second.shape:
        return False
    if first.is_meta or second.is_meta or first.layout != torch.strided or second.layout != torch.strided:
        return False
    return torch.equal(first, second)


def _joined(parts: list[StateDict]) -> StateDict:
    """A model that was saved in parts: each part's name begins the names of its tensors."""
    first = parts[0]
    names = [str(part.key) for part in parts]
    tensors = {
        f"{key}.{name}": tensor for key, part in zip(names, parts, strict=True) for name, tensor in part.tensors.items()
    }
    notes = [note for part in parts for note in part.notes]
    if len(parts) > 1:
        notes.append(f"one model in parts: {', '.join(names)}")
    return replace(first, tensors=tensors if len(parts) > 1 else first.tensors, notes=tuple(notes))


def _what_it_is(content: object) -> str:
    if isinstance(content, Instance):
        return f"holds an object ({content.path or 'unknown'}), not a state dict"
    if not isinstance(content, Mapping):
        kind = "Tensor" if isinstance(content, StoredTensor | UnreadTensor) else type(content).__name__
        return f"holds one value of type {kind}, not a state dict"
    strange = next(
        (repr(key[:80]) if isinstance(key, str) else "keys that are not names" for key in content), "nothing"
    )
    return f"is not a state dict: it holds {strange} instead of tensors by name"
