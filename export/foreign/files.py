"""Foreign files: the tensors of a PyTorch or safetensors checkpoint, and a vocabulary in JSON."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rill.export.errors import ForeignError
from rill.vocabulary import UNKNOWN, Vocabulary

_SAVE_IT = "torch.save(model.state_dict(), 'weights.pt') or safetensors.torch.save_file(model.state_dict(), ...)"


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or torch.save file, by name. Raises ForeignError.

    A torch.save file may contain weights only: a pickle with anything else in it is refused, never run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ForeignError(f"{path} cannot be read: {error.strerror}") from None
    if start[8:] == b"{":  # in safetensors, JSON follows the length of the header; not so in a pickle or zip
        try:
            return safetensors.torch.load(path.read_bytes())
        except (SafetensorError, KeyError, ValueError) as error:
            raise ForeignError(f"{path} is a damaged safetensors file: {error}") from None
    return state_dict_in(_load_pickled_weights(path), path)


def load_vocabulary_file(path: str | Path) -> Vocabulary:
    """Read a vocabulary from a JSON array of one-character strings in id order; `<unk>` may be among them.

    Raises ForeignError naming the first wrong position.
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
    return vocabulary_of(symbols, str(path))


def vocabulary_of(symbols: Sequence[object], source: str) -> Vocabulary:
    """Make a vocabulary of one-character strings in id order. Raises ForeignError naming the first wrong one."""
    first: dict[str, int] = {}
    for position, symbol in enumerate(symbols):
        what = f"{source}: {symbol!r:.40} at position {position}"
        if not isinstance(symbol, str):
            raise ForeignError(f"{what} is not a string")
        if len(symbol) != 1 and symbol != UNKNOWN:
            raise ForeignError(f"{what} is not one character; these are models of characters")
        if "\ud800" <= symbol <= "\udfff":
            raise ForeignError(f"{what} is half a surrogate pair, which cannot occur in a text")
        if first.setdefault(symbol, position) != position:
            raise ForeignError(f"{what} is already at position {first[symbol]}")
    if not first:
        raise ForeignError(f"{source} has no symbols")
    return Vocabulary(tuple(first))


def state_dict_in(content: object, source: str | Path) -> dict[str, Tensor]:
    """Find the state dict: `content` itself, or the only one among its values. Raises ForeignError."""
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
        f"{source} is not a state dict: it holds {strange} instead of tensors by name; save one with {_SAVE_IT}"
    )


def _is_state_dict(content: object) -> bool:
    """Whether `content` maps names to tensors, at least one."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _load_pickled_weights(path: Path) -> object:
    """Load a torch.save file that contains weights only. Raises ForeignError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
                if archive.testzip() is not None:
                    raise ForeignError(f"{path} is damaged: a checksum in it is wrong")
        with warnings.catch_warnings(action="ignore"):  # PyTorch's, about files that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except ForeignError:
        raise
    except pickle.UnpicklingError:
        raise ForeignError(
            f"{path} holds more than weights, or is not a PyTorch file; pickled objects are never loaded, because "
            f"that runs any code in them: save the weights alone, with {_SAVE_IT}"
        ) from None
    except Exception as error:  # torch.load raises many kinds, depending on the wrong byte
        raise ForeignError(
            f"{path} is damaged, or neither a safetensors file nor a state dict by torch.save "
            f"({type(error).__name__}); save one with {_SAVE_IT}"
        ) from None
