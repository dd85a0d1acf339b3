"""Weights that a model computes from other tensors before it uses them: folded into the weights themselves.

Weight norm, spectral norm, pruning masks and weight drop replace a parameter by others, of which the module computes it
in the forward pass. What is computed when the model is in eval mode is computed here once. Other parametrizations are
refused, because their tensors are not the weights.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rill.export.errors import ForeignError

_PARAMETRIZED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<name>\w+)\.(?P<part>.+)")


def fold(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors with such weights computed, and notes about it. Raises ForeignError for what cannot be computed."""
    folded, notes = dict(tensors), []
    for name in tensors:
        if match := _PARAMETRIZED.fullmatch(name):
            target = f"{match['module']}{match['name']}"
            if target not in folded:
                notes.append(
                    _fold_parametrized(folded, target, f"{match['module']}parametrizations.{match['name']}.", source)
                )
        elif name.endswith("_g") and name in folded and f"{name[:-2]}_v" in folded:
            notes.append(_fold_weight_norm(folded, name[:-2], name, f"{name[:-2]}_v", source))
        elif name.endswith("_orig") and name in folded:
            notes.append(_fold_original(folded, name.removesuffix("_orig"), source))
        elif name.endswith("_raw") and name in folded:
            notes.append(_fold_weight_drop(folded, name))
    return folded, notes


def _fold_parametrized(folded: dict[str, Tensor], target: str, prefix: str, source: str) -> str:
    """Of torch.nn.utils.parametrizations."""
    parts = {name.removeprefix(prefix): name for name in folded if name.startswith(prefix)}
    if set(parts) == {"original0", "original1"}:
        return _fold_weight_norm(folded, target, parts["original0"], parts["original1"], source)
    if set(parts) == {"original", "0._u", "0._v"}:
        return _fold_spectral_norm(folded, target, parts["original"], parts["0._u"], parts["0._v"], source)
    raise ForeignError(
        f"{source} computes {target} from {', '.join(parts.values())}, a parametrization that is not known here; call "
        f"torch.nn.utils.parametrize.remove_parametrizations(module, {target.rpartition('.')[2]!r}) and save again"
    )


def _fold_original(folded: dict[str, Tensor], target: str, source: str) -> str:
    """Pruning, or the older spectral norm; both keep the parameter as NAME_orig."""
    original, mask, u, v = (f"{target}_{part}" for part in ("orig", "mask", "u", "v"))
    if mask in folded:
        if folded[mask].shape != folded[original].shape:
            raise ForeignError(f"{source} has {mask}, which does not have the shape of {original}")
        folded[target] = folded.pop(original) * folded.pop(mask)
        return f"pruning applied: {target} = {original} * {mask}"
    if u in folded and v in folded:
        return _fold_spectral_norm(folded, target, original, u, v, source)
    raise ForeignError(
        f"{source} has {original}, of which the model computes {target} in a way that is not known here; undo that "
        "(torch.nn.utils.remove_spectral_norm or prune.remove, for example) and save again"
    )


def _fold_weight_norm(folded: dict[str, Tensor], target: str, g: str, v: str, source: str) -> str:
    """w = g v / |v|, with the norm over all axes but the one along which g is long."""
    length, direction = folded[g].double(), folded[v].double()
    long = [axis for axis, size in enumerate(length.shape) if size > 1]
    fits = length.ndim in {0, direction.ndim} and all(length.shape[axis] == direction.shape[axis] for axis in long)
    if len(long) > 1 or not fits or not direction.ndim:
        raise ForeignError(
            f"{source} has {g} {tuple(length.shape)} and {v} {tuple(direction.shape)}, which are not of one weight norm"
        )
    if long or not length.ndim:
        axes = [axis for axis in range(direction.ndim) if axis not in long]
    else:  # one row or one column: PyTorch's default is a norm for each row
        axes = list(range(1, direction.ndim))
    norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    folded[target] = (direction * (length / norm)).to(folded[v].dtype)
    del folded[g], folded[v]
    return f"weight norm folded: {target} = {g} * {v} / |{v}|"


def _fold_spectral_norm(folded: dict[str, Tensor], target: str, original: str, u: str, v: str, source: str) -> str:
    """w = W / (u' W v), with u and v as the last step of training left them."""
    weight, left, right = (folded[name].double() for name in (original, u, v))
    if weight.ndim != 2 or sorted(weight.shape) != sorted([*left.shape, *right.shape]):
        raise ForeignError(f"{source} has {original}, {u} and {v}, whose shapes are not those of a spectral norm")
    matrix = weight if weight.shape == (*left.shape, *right.shape) else weight.T
    folded[target] = (weight / (left @ matrix @ right)).to(folded[original].dtype)
    del folded[original], folded[u], folded[v]
    return f"spectral norm folded: {target} = {original} / sigma"


def _fold_weight_drop(folded: dict[str, Tensor], raw: str) -> str:
    """Dropout of weights acts in training only, so the raw weight is the weight."""
    prefix, _, name = raw.removesuffix("_raw").rpartition(".")
    inner = ".".join(filter(None, (prefix, "module", name)))
    target = inner if inner in folded else raw.removesuffix("_raw")
    weight = folded.pop(raw)
    folded[target] = weight
    return f"weight drop undone: {target} = {raw}"
