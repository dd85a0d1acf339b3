"""Read what torch.save or pickle.dump wrote, as data: zip files, the older format, and plain pickles.

The pickle is read by `pickles`, so nothing in it runs. Tensors and NumPy arrays are read from the bytes beside it when
they are asked for, with the checks that the pickle does not make: every number of a tensor lies in its storage.
"""

import io
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rill.export.foreign.pickles import Global, Instance, PickleError, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before PyTorch 1.6
_LARGEST_PICKLE = 2**30  # bytes
_MOST_NUMBERS = 2**33  # of one tensor
_MOST_REPEATED = 2**24  # of one tensor that shows the numbers of a smaller storage several times

_TYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
}
_TEXTS = [f"U{length}" for length in range(1, 33)]  # NumPy's types of short texts
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class CheckpointError(ValueError):
    """A checkpoint is damaged, or in a form that is not read; the message says what follows its name."""


class Storage(NamedTuple):
    """Numbers in a row, to be read later. `dtype` None: bytes without a type."""

    read: Callable[[], bytes | bytearray]
    dtype: torch.dtype | None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a checkpoint. `shape` may be hostile until `load` has checked it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]  # raises CheckpointError


@dataclass(frozen=True, eq=False)
class UnreadTensor:
    """A tensor in a form that is not read; `kind` says which."""

    kind: str


def read_checkpoint(path: Path) -> object:
    """The content of a file by torch.save or pickle.dump. Raises CheckpointError and OSError."""
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        data = io.BytesIO(path.read_bytes())
        return _read_stream(data)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # zipfile raises many kinds, depending on the wrong byte
        raise CheckpointError(f"is damaged, or not a checkpoint: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """The text of an error, short and printable."""
    return "".join(each if each.isprintable() else " " for each in str(error)[:200]) or type(error).__name__


def _read_zip(path: Path) -> object:
    """Read the format of PyTorch 1.6 and later: a zip file with data.pkl, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") <= 1]
        if not names:
            raise CheckpointError("is a zip archive, but not one of torch.save")
        prefix = names[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in archive.namelist():
            with archive.open(f"{prefix}byteorder") as file:
                if file.read(10) != sys.byteorder.encode():
                    raise CheckpointError("was written on a machine of the other byte order")
        if archive.getinfo(names[0]).file_size > _LARGEST_PICKLE:
            raise CheckpointError(f"has a data.pkl of more than {_LARGEST_PICKLE:,} bytes")
        pickled = archive.read(names[0])

    def persistent(key: object) -> object:
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise PickleError("a persistent id is not that of a storage")
        _, kind, name, _, count = key
        if not isinstance(name, str) or type(count) is not int:
            raise PickleError("a persistent id is not that of a storage")
        dtype = _storage_type(kind)

        def read() -> bytes:
            try:
                with zipfile.ZipFile(path) as archive:  # it verifies checksums
                    info = archive.getinfo(f"{prefix}data/{name}")
                    expected = count * (dtype.itemsize if dtype else 1)
                    if info.file_size != expected:
                        raise CheckpointError(f"is damaged: storage {name} has {info.file_size} bytes, not {expected}")
                    return archive.read(info)
            except CheckpointError:
                raise
            except Exception as error:  # as above
                raise CheckpointError(f"is damaged: {one_line(error)}") from None

        return Storage(read, dtype)

    return read_pickle(io.BytesIO(pickled), persistent, _call)


def _read_stream(data: io.BytesIO, depth: int = 0) -> object:
    """Read the format before PyTorch 1.6, pickles one after another and then the storages; or a plain pickle."""
    stored: dict[object, tuple[int, int]] = {}  # by key: offset in the file, and number of bytes
    dtypes: dict[object, torch.dtype | None] = {}
    whole = data.getbuffer()

    def persistent(key: object) -> object:
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            return key[1]  # a class, beside its source
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[2], str | int):
            raise PickleError("a persistent id is not that of a storage")
        name, view = key[2], key[5] if len(key) > 5 else None
        dtype = dtypes[name] = _storage_type(key[1])
        size = dtype.itemsize if dtype else 1

        def read() -> bytes:
            if name not in stored:
                raise CheckpointError(f"is damaged: storage {name} is missing")
            offset, length = stored[name]
            if isinstance(view, tuple) and len(view) == 3:
                _, begin, count = view
                if not (type(begin) is type(count) is int):
                    raise CheckpointError(f"is damaged: a view of storage {name} is impossible")
                begin, length = begin * size, min(count * size, length - begin * size)
                if begin < 0 or length < 0:
                    raise CheckpointError(f"is damaged: storage {name} is too short")
                offset += begin
            return bytes(whole[offset : offset + length])

        return Storage(read, dtype)

    def call(instance: Instance) -> object:
        if instance.path == "torch.storage._load_from_bytes" and depth == 0 and instance.arguments:
            inner = instance.arguments[0]
            if isinstance(inner, bytes | bytearray):
                return _read_stream(io.BytesIO(bytes(inner)), depth + 1)
        return _call(instance)

    first = read_pickle(data, persistent, call)
    if first != _MAGIC:
        return first
    read_pickle(data)  # the version of the protocol
    system = read_pickle(data)
    if isinstance(system, dict) and system.get("little_endian", True) != (sys.byteorder == "little"):
        raise CheckpointError("was written on a machine of the other byte order")
    content = read_pickle(data, persistent, call)
    for name in read_pickle(data):
        if not isinstance(name, str | int):
            raise PickleError("the list of storages is wrong")
        header = data.read(8)
        size = dtype.itemsize if (dtype := dtypes.get(name)) else 1
        length = int.from_bytes(header, sys.byteorder, signed=True) * size
        if len(header) < 8 or not 0 <= length <= len(whole) - data.tell():
            raise CheckpointError("is damaged: it ends within a tensor")
        stored[name] = data.tell(), length
        data.seek(length, io.SEEK_CUR)
    return content


def _storage_type(kind: object) -> torch.dtype | None:
    name = kind.path.rpartition(".")[2] if isinstance(kind, Global) else "?"
    if name in {"UntypedStorage", "_UntypedStorage"}:
        return None
    if name.removesuffix("Storage") not in _TYPES:
        raise CheckpointError(f"has numbers of an unknown type, {name:.80}")
    return _TYPES[name.removesuffix("Storage")]


def _call(instance: Instance) -> object:
    """Make tensors, arrays and bytes of the calls that describe them; any other call stays what it is."""
    path, given = instance.path, instance.arguments
    module, _, name = path.rpartition(".")
    try:
        if path in _CALLS:
            return _CALLS[path](*given)
        if module == "torch._utils" and name.startswith("_rebuild"):
            return UnreadTensor(f"a tensor of an unusual kind ({name.removeprefix('_rebuild_')})")
        if path.startswith("numpy") and path.endswith("multiarray._reconstruct"):
            return _Array(instance.made_by, given)
        if path.startswith("numpy") and path.endswith("numeric._frombuffer"):
            return _array(given[0], given[1], given[2], given[3] == "F") or instance
    except (IndexError, UnicodeEncodeError, AttributeError, ValueError, TypeError) as error:
        raise PickleError(f"a call of {path:.80} has wrong arguments ({error})") from None
    return instance


def _typed(function: object, kind: object, given: tuple[object, ...], *_: object) -> object:
    """A tensor of a class of its own: what `function` makes of it."""
    return _call(Instance(function, given))


def _stored(storage: object, offset: object, size: object, stride: object, dtype: object = None) -> object:
    if not isinstance(storage, Storage):
        raise PickleError("a tensor lacks its storage")
    numbers = (offset, *_whole(size), *_whole(stride))
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise PickleError("the shape of a tensor is impossible")
    shape, steps, start = _whole(size), _whole(stride), int(offset)  # type: ignore[call-overload]
    kind = _DTYPES.get(dtype.path) if isinstance(dtype, Global) else storage.dtype

    def load() -> Tensor:
        if kind is None:
            raise CheckpointError("has a tensor without a type")
        numbers = math.prod(shape)
        if numbers > _MOST_NUMBERS or len(steps) != len(shape):
            raise CheckpointError(f"has a tensor of the impossible shape {shape}")
        if not numbers:
            return torch.empty(shape, dtype=kind)
        data = bytearray(storage.read())
        held = len(data) // kind.itemsize
        last = start + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
        if last >= held or numbers > max(held, _MOST_REPEATED):
            raise CheckpointError(f"is damaged: a tensor of shape {shape} is larger than its storage")
        # A copy, because the storage may hold many tensors.
        return torch.frombuffer(data, dtype=kind, count=held).as_strided(shape, steps, start).clone()

    return StoredTensor(shape, load)


def _whole(value: object) -> tuple[int, ...]:
    """A shape; torch.Size(...) too."""
    if isinstance(value, Instance) and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, tuple | list):
        raise PickleError("the shape of a tensor is not a tuple")
    return tuple(value)


class _Array(Instance):
    """A NumPy array: its state, set after the call, has shape, type and bytes."""


def array_of(instance: Instance) -> StoredTensor | None:
    """The numbers of a pickled NumPy array; None for anything else."""
    state = instance.state
    if not (isinstance(instance, _Array) and isinstance(state, tuple) and len(state) == 5):
        return None
    _, shape, kind, is_fortran, data = state
    return _array(data, kind, shape, is_fortran is True)


def texts_of(instance: Instance) -> list[str] | None:
    """The texts of a pickled NumPy array of them, such as a vocabulary by numpy.unique; None for anything else."""
    state = instance.state
    if not (isinstance(instance, _Array) and isinstance(state, tuple) and len(state) == 5):
        return None
    _, shape, kind, _, data = state
    name = kind.arguments[0] if isinstance(kind, Instance) and kind.arguments else None
    order = (
        kind.state[1] if isinstance(kind, Instance) and isinstance(kind.state, tuple) and len(kind.state) > 1 else ""
    )
    if name not in _TEXTS or order not in ("<", ">") or not isinstance(data, bytes) or len(_whole(shape)) != 1:
        return None
    try:
        return [str(each) for each in np.frombuffer(data, f"{order}{name}")]
    except ValueError:
        return None


def _array(data: object, kind: object, shape: object, is_fortran: bool) -> StoredTensor | None:
    """An array of floats or whole numbers, from its bytes and its pickled type."""
    if not (isinstance(data, bytes | bytearray) and isinstance(kind, Instance) and kind.arguments):
        return None
    name, order = kind.arguments[0], "="
    if isinstance(kind.state, tuple) and len(kind.state) > 1 and kind.state[1] in ("<", ">"):
        order = kind.state[1]
    if not (isinstance(name, str) and name[:1] in {"f", "i", "u"} and name[1:] in {"1", "2", "4", "8"}):
        return None
    sizes = _whole(shape)

    def load() -> Tensor:
        try:
            array = np.frombuffer(data, f"{order}{name}").reshape(sizes, order="F" if is_fortran else "C")
            return torch.from_numpy(np.array(array, f"={name}", order="C"))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"has a damaged NumPy array: {error}") from None

    return StoredTensor(sizes, load)


# What stands for the result of a call, by the name of what is called.
_CALLS: dict[str, Callable[..., object]] = {
    "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # bytes, in pickles that Python 2 can read
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch._utils._rebuild_tensor": lambda storage, start, size, stride, *_: _stored(storage, start, size, stride),
    "torch._utils._rebuild_tensor_v2": lambda storage, start, size, stride, *_: _stored(storage, start, size, stride),
    "torch._utils._rebuild_tensor_v3": lambda storage, start, size, stride, _grad, _hooks, dtype, *_: _stored(
        storage, start, size, stride, dtype
    ),
    **{
        f"torch._utils._rebuild_{name}": lambda numbers, *_: numbers
        for name in ("parameter", "parameter_with_state", "device_tensor_from_cpu_tensor")
    },
    **{
        f"torch._utils._rebuild_{name}": lambda *_, kind=kind: UnreadTensor(kind)
        for name, kind in {
            "sparse_tensor": "a sparse tensor; make it dense with .to_dense(), and save again",
            "qtensor": "a quantised tensor; save the model as it was before it was quantised",
            "meta_tensor_no_storage": "a meta tensor, which has no numbers",
        }.items()
    },
}
