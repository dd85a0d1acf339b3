"""Find the state dicts in the content of a checkpoint: dicts of tensors at any depth, and whole modules."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rill.export.foreign.checkpoints import StoredTensor, UnreadTensor, array_of
from rill.export.foreign.pickles import Instance

AnyTensor = Tensor | StoredTensor | UnreadTensor

_MOST_LEVELS, _MOST_VALUES, _MOST_MODULES = 8, 100_000, 10_000
_NOT_A_MODEL = ("optim", "sched", "scaler", "loops", "callbacks", "rng", "random")  # in keys of what is not a model
_QUANTISED = ("_packed_params", "_all_weight_values")  # in names of what torch.ao.quantization makes
# Modules without weights that change nothing when a trained model generates.
_HARMLESS = {"Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "Identity", "Flatten", "Unflatten", "Module"}
_HARMLESS |= {"ModuleList", "ModuleDict", "Sequential", "ParameterList", "LogSoftmax", "Softmax"}


@dataclass(frozen=True)
class StateDict:
    """Tensors by name. `where` and `key` say where they were found, `parent` in which container.

    `ignored` are names of other values among them. `refusal` is the reason why the model cannot be exported, if its
    module tells one.
    """

    tensors: Mapping[str, AnyTensor]
    where: str
    key: object
    parent: int
    is_module: bool = False
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def is_recurrent(self) -> bool:
        """Whether it has recurrent weights by PyTorch's names."""
        return any("weight_hh" in name for name in self.tensors)

    @property
    def has_ends(self) -> bool:
        """Whether it has more than recurrent weights."""
        return any("_hh" not in name and "_ih" not in name for name in self.tensors)


def find_state_dicts(content: object) -> list[StateDict]:
    """All state dicts in `content`, the outer ones first; a module's own is one."""
    found: list[StateDict] = []
    waiting: deque[tuple[str, object, int, object, int]] = deque([("", "", 0, content, 0)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_VALUES:
        where, key, parent, value, level = waiting.popleft()
        if not isinstance(value, Mapping | Instance | list | tuple) or id(value) in seen or level > _MOST_LEVELS:
            continue
        seen.add(id(value))
        inside: list[tuple[object, object]] = []
        if isinstance(value, Instance):
            attributes = value.attributes
            if _is_module(attributes):
                if (module := _of_module(value, where, key, parent)).tensors:
                    found.append(module)
                continue
            inside = [*attributes.items(), *value.entries.items(), *enumerate(value.items[:100])]
        elif isinstance(value, Mapping):
            inside = list(value.items())
            if own := _of_mapping(value, where, key, parent):
                found.append(own)
        elif len(value) <= 100:
            inside = list(enumerate(value))
        for name, each in inside:
            if isinstance(name, str) and any(word in name.lower() for word in _NOT_A_MODEL):
                continue
            step = f"{where}.{name}" if where else str(name) if isinstance(name, str | int) else "?"
            waiting.append((step[:100], name, id(value), each, level + 1))
    return found


def _of_mapping(value: Mapping[object, object], where: str, key: object, parent: int) -> StateDict | None:
    """The tensors of a dict by name, if it has any."""
    tensors: dict[str, AnyTensor] = {}
    ignored = []
    for name, each in value.items():
        if isinstance(name, str) and (tensor := _tensor(each)) is not None:
            tensors[name] = tensor
        elif not isinstance(each, Mapping | list | tuple) or not each:
            ignored.append(str(name) if isinstance(name, str | int) else "?")
    packed = next((name for name in value if isinstance(name, str) and any(mark in name for mark in _QUANTISED)), None)
    refusal = f"it is quantised (it has {packed}); save the model as it was before that" if packed else ""
    return StateDict(tensors, where, key, parent, ignored=tuple(ignored), refusal=refusal) if tensors else None


def _of_module(module: Instance, where: str, key: object, parent: int) -> StateDict:
    """What the module's `state_dict()` would return."""
    tensors: dict[str, AnyTensor] = {}
    notes: list[str] = []
    refusal = ""
    waiting: deque[tuple[str, object]] = deque([("", module)])
    count = 0
    while waiting and count < _MOST_MODULES:
        prefix, each = waiting.popleft()
        count += 1
        if not isinstance(each, Instance) or prefix.count(".") > 64:
            continue
        attributes = each.attributes
        hidden = attributes.get("_non_persistent_buffers_set")
        skipped = set(filter(_is_text, hidden.items)) if isinstance(hidden, Instance) else set()
        own = 0
        for group in ("_parameters", "_buffers"):
            entries = attributes.get(group)
            for name, value in entries.items() if isinstance(entries, Mapping) else ():
                tensor = _tensor(value)
                if tensor is not None and isinstance(name, str) and not (group == "_buffers" and name in skipped):
                    tensors[prefix + name] = tensor
                    own += 1
        children = attributes.get("_modules")
        children = children if isinstance(children, Mapping) else {}
        waiting.extend((f"{prefix}{name}.", child) for name, child in children.items() if isinstance(name, str))
        kind, name = each.path.rpartition(".")[2], prefix.rstrip(".") or "the model"
        if attributes.get("mode") == "RNN_RELU" or (kind == "RNNCell" and attributes.get("nonlinearity") == "relu"):
            refusal = f"{name} is an RNN with relu; only tanh can be expressed here"
        if kind in {"Embedding", "EmbeddingBag"} and attributes.get("max_norm") is not None:
            notes.append(f"{name} has max_norm, which is not applied: its rows are taken as they are in the file")
        if each.path.startswith("torch.nn.modules.") and not own and not children and not _is_harmless(each.path):
            notes.append(
                f"{name} is a {kind}, which has no weights: if the model computes with it, this bundle does not"
            )
    return StateDict(tensors, where, key, parent, is_module=True, notes=tuple(notes), refusal=refusal)


def _is_harmless(path: str) -> bool:
    return path.rpartition(".")[2] in _HARMLESS or path.startswith("torch.nn.modules.loss.")


def _is_module(attributes: Mapping[object, object]) -> bool:
    return isinstance(attributes.get("_parameters"), Mapping) and isinstance(attributes.get("_modules"), Mapping)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _tensor(value: object) -> AnyTensor | None:
    if isinstance(value, Tensor | StoredTensor | UnreadTensor):
        return value
    return array_of(value) if isinstance(value, Instance) else None
