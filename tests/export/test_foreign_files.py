"""Files that hold more than weights, or something else: the weights are read, nothing runs, and each file is named."""

import argparse
import collections
import contextlib
import dataclasses
import enum
import functools
import gzip
import io
import os
import pathlib
import pickle
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rill.export.errors import ForeignError
from rill.export.foreign.checkpoints import StoredTensor, read_checkpoint
from rill.export.foreign.files import load_checkpoint, load_state_dict_file
from rill.export.foreign.pickles import PickleError, read_pickle
from rill.export.foreign.run import foreign_run

V, H, E = 11, 8, 5
SYMBOLS = tuple("abcdefghijk")
few = settings(max_examples=50, deadline=None, derandomize=True)


class Poet(nn.Module):
    def __init__(self, **extra):
        super().__init__()
        torch.manual_seed(1)
        self.emb = nn.Embedding(V, E, padding_idx=0)
        self.drop = nn.Dropout(0.1)
        self.rnn = nn.GRU(E, H, batch_first=True)
        self.fc = nn.Linear(H, V)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        for name, module in extra.items():
            self.add_module(name, module)


class Config:
    def __init__(self):
        self.lr, self.seen = 0.1, {"a": [1, (2, 3)]}


class Slotted:
    __slots__ = ("lr",)


class Mode(enum.Enum):
    GREEDY = "greedy"


class Words(list):
    pass


@dataclasses.dataclass
class Options:
    hidden: int = H


def a_function(x):
    return x


def slotted():
    made = Slotted()
    made.lr = 0.1
    return made


MODEL = Poet()
WEIGHTS = MODEL.state_dict()
CONTENTS = {
    "state-dict": WEIGHTS,
    "epoch-among-them": {**WEIGHTS, "epoch": 3, "name": "poet"},
    "counters": {**WEIGHTS, "bn.num_batches_tracked": torch.tensor(7), "step": torch.tensor(3)},
    "namespace": {"model_state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)},
    "config": {"net": WEIGHTS, "config": Config()},
    "slots": {"net": WEIGHTS, "config": slotted()},
    "dataclass": {"model": WEIGHTS, "options": Options()},
    "enum": {"model": WEIGHTS, "mode": Mode.GREEDY},
    "scalar": {"state_dict": WEIGHTS, "best": np.float64(1.5), "array": np.arange(3)},
    "path": {"state_dict": WEIGHTS, "data": pathlib.Path("book.txt")},
    "defaultdict": {"state_dict": WEIGHTS, "seen": collections.defaultdict(int, {"a": 1})},
    "counter": {"state_dict": WEIGHTS, "seen": collections.Counter("abca"), "words": Words(["a"])},
    "functions": {"state_dict": WEIGHTS, "f": a_function, "g": functools.partial(a_function, 3), "h": os.path.join},
    "torch-types": {"state_dict": WEIGHTS, "at": torch.device("cpu"), "type": torch.float16, "size": torch.Size([3])},
    "sets": {"state_dict": WEIGHTS, "seen": {1, 2}, "frozen": frozenset("ab"), "bytes": bytearray(b"ab"), "z": 1j},
    "simple-namespace": SimpleNamespace(step=1, weights=WEIGHTS),
    "module": MODEL,
    "module-beside": {"model": MODEL, "model_state_dict": WEIGHTS},
    "module-inside": {"trainer": Options(hidden=MODEL)},
    "data-parallel": nn.DataParallel(MODEL).state_dict(),
    "nested": {"checkpoint": {"model": {"state_dict": WEIGHTS}}},
    "tuple": (WEIGHTS, 7),
    "parts": {"emb": MODEL.emb.state_dict(), "rnn": MODEL.rnn.state_dict(), "fc": MODEL.fc.state_dict(), "epoch": 3},
    "lightning": {
        "state_dict": {f"net.{name}": value for name, value in WEIGHTS.items()},
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "optimizer_states": [torch.optim.Adam(MODEL.parameters()).state_dict()],
        "callbacks": {"EarlyStopping": {"best": torch.tensor(1.0)}},
    },
}


def save(content, path, form):
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    elif form == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content, path)


def assert_poet(path, **options):
    run = foreign_run(path, SYMBOLS, **options)
    ours = {"emb.weight": "embedding.weight", "fc.weight": "linear.weight", "fc.bias": "linear.bias"}
    for name, weight in WEIGHTS.items():
        torch.testing.assert_close(run.weights[ours.get(name, name)], weight, rtol=0, atol=0)
    return run


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, about the older format
@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_weights_are_read_whatever_lies_beside_them(kind, form, tmp_path):
    save(CONTENTS[kind], tmp_path / "x.pt", form)
    assert_poet(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol, tmp_path):
    content = {"state_dict": WEIGHTS, **{key: CONTENTS[key] for key in ("namespace", "counter", "sets")}}
    del content["namespace"], content["counter"]["state_dict"], content["sets"]["state_dict"]
    try:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        torch.save(content, tmp_path / "x.pt", pickle_protocol=max(protocol, 1))  # it writes 0, but cannot read it
    finally:
        content["counter"]["state_dict"] = content["sets"]["state_dict"] = WEIGHTS
    assert_poet(tmp_path / "x.pkl")
    assert_poet(tmp_path / "x.pt")


def test_numpy_arrays_are_weights(tmp_path):
    arrays = {name: np.asfortranarray(value.numpy()) for name, value in WEIGHTS.items()}
    for protocol in (2, 5):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
        assert_poet(tmp_path / "x.pkl")


def test_what_only_a_module_tells(tmp_path):
    torch.save(Poet(act=nn.Tanh()), tmp_path / "x.pt")
    assert assert_poet(tmp_path / "x.pt").notes == (
        "act is a Tanh, which has no weights: if the model computes with it, this bundle does not",
    )
    model = nn.ModuleDict({"rnn": nn.RNN(V, H, nonlinearity="relu"), "fc": nn.Linear(H, V)})
    torch.save(model, tmp_path / "relu.pt")
    with pytest.raises(ForeignError, match="rnn is an RNN with relu; only tanh can be expressed here"):
        foreign_run(tmp_path / "relu.pt", SYMBOLS)


def test_what_was_not_read_is_noted(tmp_path):
    torch.save(CONTENTS["epoch-among-them"], tmp_path / "x.pt")
    assert assert_poet(tmp_path / "x.pt").notes == ("not weights, so not read: epoch, name",)
    torch.save(CONTENTS["parts"], tmp_path / "x.pt")
    assert assert_poet(tmp_path / "x.pt").notes == ("one model in parts: rnn, emb, fc",)


# ---- tensors


@few
@given(
    kind=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
    shape=st.lists(st.integers(0, 4), max_size=3),
    view=st.sampled_from(["plain", "transposed", "slice", "expanded", "parameter"]),
    is_old=st.booleans(),
)
def test_tensors_are_those_of_torch_load(kind, shape, view, is_old, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensor") / "x.pt"
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 9).to(kind)
    if view == "transposed":
        tensor = tensor.permute(list(reversed(range(tensor.ndim))))
    if view == "slice" and tensor.ndim:
        tensor = tensor[1::2]
    if view == "expanded":
        tensor = tensor[None].expand(3, *tensor.shape)
    if view == "parameter" and tensor.is_floating_point():
        tensor = nn.Parameter(tensor)
    torch.save({"a": tensor, "b": tensor}, path, _use_new_zipfile_serialization=not is_old)
    stored = read_checkpoint(path)
    expected = torch.load(path, weights_only=True)
    for name in ("a", "b"):
        assert isinstance(stored[name], StoredTensor)
        assert torch.equal(stored[name].load(), expected[name])
        assert stored[name].load().dtype == kind


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.ones(V, H).to_sparse(), "fc.weight is a sparse tensor; make it dense"),
        (lambda: torch.ones(V, H, device="meta"), "fc.weight is a meta tensor"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(V, H), 0.1, 0, torch.qint8),
            "fc.weight is a quantised tensor; save the",
        ),
        (lambda: torch.ones(V, H, dtype=torch.complex64), "fc.weight as torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, about quantised tensors
def test_tensors_of_unusual_kinds_are_named(make, kind, tmp_path):
    torch.save({**WEIGHTS, "fc.weight": make()}, tmp_path / "x.pt")
    with pytest.raises(ForeignError, match=kind):
        foreign_run(tmp_path / "x.pt", SYMBOLS)


def test_a_quantised_model_is_named(tmp_path):
    # As torch.ao.quantization makes it: the weights are in objects, not in tensors.
    torch.save(
        {"emb.weight": torch.ones(V, E), "fc.scale": torch.tensor(1.0), "fc._packed_params.dtype": 7}, tmp_path / "x.pt"
    )
    with pytest.raises(
        ForeignError, match=r"it is quantised \(it has fc\._packed_params\.dtype\); save the model as it was"
    ):
        foreign_run(tmp_path / "x.pt", SYMBOLS)


# ---- hostile pickles: none of them runs, hangs or takes memory


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module, name):
    return short(module) + short(name) + b"\x93"


def nested(depth):
    """A tuple of a tuple of …, each twice in the one around it: 2 ** depth values."""
    return b")" + b"2\x86" * depth


TOUCH = b"cos\nsystem\n"
HOSTILE = {
    "system": TOUCH + short("touch marker") + b"\x85R.",
    "stack-global": named("os", "system") + short("touch marker") + b"\x85R.",
    "posix": b"cposix\nsystem\n" + short("touch marker") + b"\x85R.",
    "inst": b"(" + short("touch marker") + b"ios\nsystem\n.",
    "obj": b"(" + TOUCH + short("touch marker") + b"o.",
    "newobj": TOUCH + short("touch marker") + b"\x85\x81.",
    "newobj-ex": TOUCH + short("touch marker") + b"\x85}\x92.",
    "eval": b"cbuiltins\neval\n" + short("__import__('os').system('touch marker')") + b"\x85R.",
    "getattr": (b"cbuiltins\ngetattr\n" + b"cos\npath\n" + short("os") + b"\x86R" + short("touch marker") + b"\x85R."),
    "build": b"cos\npath\n}" + short("sep") + short("x") + b"sb.",
    "build-class": b"ctorch\nTensor\nN}" + short("ndim") + short("x") + b"s\x86b.",
    "setstate": b"ctorch.storage\n_load_from_bytes\nC\x04abcd\x85R.",
    "call-of-a-call": TOUCH + b")R" + short("touch marker") + b"\x85R.",
    "rebuild": b"ctorch._utils\n_rebuild_tensor_v2\n(KdKdKdKdKdKdtR.",
    "from-type": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + TOUCH + b"N" + short("touch marker") + b"\x85Nt" + b"R.",
    "extension": b"\x82\x01.",
    "key": b"}" + nested(200) + b"K\x01s.",
    "function": nested(200) + b")R.",
    "state": b"cbuiltins\nobject\n)\x81" + nested(200) + b"b.",
    "persistent": nested(200) + b"Q.",
    "storage": b"(" + short("storage") + nested(200) + nested(200) + b"NNNtQ.",
    "deep": b"]" * 20_000 + b"a" * 19_999 + b".",
    "deep-calls": b"cx\ny\n" + b")R" * 20_000 + b".",
    "memo": b"Nr\xff\xff\xff\xff.",
    "long-bytes": b"\x8e" + b"\xff" * 7 + b"\x0f.",
    "long-bytearray": b"\x96" + b"\xff" * 7 + b"\x0f.",
    "long-number": b"\x8b\xff\xff\xff\x7f.",
    "text-number": b"I" + b"9" * 100_000 + b"\n.",
    "no-mark": b"t.",
    "empty-stack": b"R.",
    "itself": b"]2a.",
    "buffer": b"\x97.",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["plain", "zip", "old"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_runs_nothing(kind, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = b"\x80\x04" + HOSTILE[kind]
    if form == "zip":
        with zipfile.ZipFile("x.pt", "w") as archive:
            archive.writestr("archive/data.pkl", hostile)
    elif form == "old":
        parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        Path("x.pt").write_bytes(b"".join(map(pickle.dumps, parts)) + hostile + pickle.dumps([]))
    else:
        Path("x.pt").write_bytes(hostile)
    before = set(os.environ), os.path.sep, torch.Tensor.ndim
    with pytest.raises(ForeignError, match=r"^x\.pt ") as caught:
        load_checkpoint("x.pt")
    assert len(str(caught.value)) < 1000
    assert (set(os.environ), os.path.sep, torch.Tensor.ndim) == before
    assert os.listdir() == ["x.pt"]


@few
@given(
    data=st.lists(st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from(sorted(HOSTILE.values()))), max_size=6)
)
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(PickleError):
        read_pickle(io.BytesIO(b"".join(data) + b"."))


def stored(size, stride, offset=0, count=4, data=bytes(16)):
    """The bytes of a file that describes one tensor; its storage has `data`."""
    numbers = pickle.dumps((offset, size, stride), protocol=2)[2:-1]
    parts = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + pickle.dumps(count, 2)[2:-1]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"tQ" + numbers
    # Three values from the tuple: through the memo they need no unpacking.
    made = tensor[: -len(numbers)] + b"".join(pickle.dumps(each, 2)[2:-1] for each in (offset, size, stride))
    pickled = b"\x80\x02}X\x0e\0\0\0x.weight_hh_l0" + made + b"\x89NtRs."
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return target.getvalue()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (stored((2, 2), (2, 1)), None),
        (stored((2, 3), (2, 1)), "larger than its storage"),
        (stored((2, 2), (2, 1), offset=1), "larger than its storage"),
        (stored((2, 2), (2, 1), data=bytes(12)), "storage 0 has 12 bytes, not 16"),
        (stored((2**31, 2**31), (0, 0)), "impossible shape"),
        (stored((2**16, 2**16), (0, 0)), "larger than its storage"),
        (stored((2**70,), (0,)), "shape of a tensor is impossible"),
        (stored((-1,), (1,)), "shape of a tensor is impossible"),
        (stored((2,), (-1,)), "shape of a tensor is impossible"),
        (stored((2, 2), (1,)), "impossible shape"),
        (stored((2,), (1,), count=2**60), "storage 0 has 16 bytes"),
    ],
)
def test_a_tensor_lies_in_its_storage(described, message, tmp_path):
    (tmp_path / "x.pt").write_bytes(described)
    if message is None:
        assert load_state_dict_file(tmp_path / "x.pt")["x.weight_hh_l0"].tolist() == [[0, 0], [0, 0]]
    else:
        with pytest.raises(ForeignError, match=message):
            load_state_dict_file(tmp_path / "x.pt")


# ---- other files


def zipped(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def tarred(*names):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def npz():
    data = io.BytesIO()
    np.savez(data, a=np.zeros(3))
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.pt", b"", "is empty"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras writes them"),
        ("x.keras", zipped(**{"config.json": b"{}", "model.weights.h5": b""}), "a Keras model"),
        (
            "x.pt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "a pointer of Git LFS.*git lfs pull",
        ),
        ("x.pt", b"<!DOCTYPE html><title>Not found</title>", "a web page"),
        ("x.pt", b"\n\n  <html>", "a web page"),
        ("x.npz", npz(), r"an archive of NumPy arrays; torch\.save\(\{name"),
        ("x.npy", b"\x93NUMPY\x01\0v\0", "one NumPy array"),
        ("x.onnx", b"\x08\x07\x12\x07pytorch" + b"x" * 50, "an ONNX model"),
        ("x.bin", b"\x08\x0a\x12\x0btf2onnx 1.9" + bytes(50), "an ONNX model"),
        ("x.tflite", b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite model"),
        ("x.t7", b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "a file of Lua Torch"),
        ("x.pt.gz", gzip.compress(b"x", mtime=0), "compressed with gzip"),
        ("x.tar", tarred("weights.pt"), "a tar archive"),
        ("x.pt", tarred("storages", "tensors", "pickle"), "a checkpoint of PyTorch 0.1, which is not read here"),
        ("x.zip", zipped(weights=b"x"), "a zip archive, but not one of torch.save"),
        (
            "x.zip",
            zipped(a__b__data_pkl=b"x").replace(b"data_pkl", b"data.pkl"),
            "a zip archive around an unpacked checkpoint; zip the folder that",
        ),
        ("x.pt", zipped(m__constants=b"x").replace(b"constants", b"code/_.py"), "a TorchScript program"),
        ("x.pt", b"PK\x03\x04" + bytes(100), "damaged: its zip archive is cut"),
        ("x.json", b'{"weights": [1, 2]}', "JSON, not weights"),
        ("x.txt", "Schöne Wörter\n".encode() * 1000, "a text, not weights"),
        ("x.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("x.pt", bytes(range(128, 256)) * 9, "is damaged, or not a checkpoint: "),
        ("x.index", bytes(50), "part of a TensorFlow checkpoint"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_a_file_is(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ForeignError, match=rf"{name} is {message}|{name} {message}") as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_encrypted_archive(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1  # the flag of encryption
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ForeignError, match=r"x\.pt is damaged, or not a checkpoint: .*encrypted"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_safetensors_with_headers_of_every_length(padding, tmp_path):
    data = safetensors.torch.save(WEIGHTS, {"a": "x" * padding})
    (tmp_path / "x.safetensors").write_bytes(data)
    assert load_state_dict_file(tmp_path / "x.safetensors").keys() == WEIGHTS.keys()


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about TorchScript
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.GRU(E, H), torch.zeros(1, 1, E)), tmp_path / "x.pt")
    with pytest.raises(ForeignError, match=r"a TorchScript program; torch\.save\(torch\.jit\.load\(FILE"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "a folder; give the file in it that has the weights"),
        (["b.safetensors", "a.pt", "notes.txt"], r"a folder; give the file in it: a\.pt, b\.safetensors"),
        (["data.pkl"], "an unpacked checkpoint; zip it"),
        (["saved_model.pb"], "a TensorFlow model"),
        (["config.json", "metrics.jsonl"], "a run of Rill; export it with rill export RUN"),
    ],
)
def test_what_a_folder_is(files, message, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ForeignError, match=message):
        load_checkpoint(tmp_path)
