"""What a file is that is not a checkpoint of PyTorch, and how to get a state dict out of it."""

import tarfile
import zipfile
from pathlib import Path

SAVE = "torch.save(model.state_dict(), 'weights.pt')"
_CONVERT = "copy its weights into a PyTorch model of the same kind, and save that"

_LUA = f"a file of Lua Torch (.t7); read it with the package torchfile, and {_CONVERT}"

_STARTS = [
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself; run git lfs pull in its repository"),
    (
        b"\x89HDF\r\n\x1a\n",
        f"an HDF5 file, as Keras writes them; open it with h5py, and {_CONVERT}: the order of its gates differs",
    ),
    (
        b"\x93NUMPY",
        "one NumPy array; torch.save({'NAME': torch.from_numpy(array), ...}, 'weights.pt') makes a state dict",
    ),
    (b"\x1f\x8b", "compressed with gzip; unpack it with gunzip or tar -xzf, and give the file inside"),
    (b"BZh", "compressed with bzip2; unpack it, and give the file inside"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it, and give the file inside"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it, and give the file inside"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it, and give the file inside"),
    (b"Rar!", "a RAR archive; unpack it, and give the file inside"),
    (b"GGUF", f"a GGUF file; {_CONVERT}"),
    (b"%PDF", "a PDF document, not weights"),
    (b"\x89PNG", "a picture, not weights"),
    (b"\xff\xd8\xff", "a picture, not weights"),
    (b"\x7fELF", "a program, not weights"),
    *((kind + b"\0\0\0\1\0\0\0", _LUA) for kind in (b"\3", b"\4")),
]
_SUFFIXES = {
    ".onnx": f"an ONNX model; take the PyTorch model that it was made of, or {_CONVERT}",
    ".tflite": f"a TensorFlow Lite model; {_CONVERT}",
    ".pb": f"a TensorFlow graph; {_CONVERT}",
    ".index": f"part of a TensorFlow checkpoint; read it with tf.train.load_checkpoint, and {_CONVERT}",
    ".msgpack": f"a Flax checkpoint; {_CONVERT}",
    ".mlmodel": f"a Core ML model; {_CONVERT}",
}
_WEIGHT_FILES = ("*.pt", "*.pth", "*.ckpt", "*.bin", "*.safetensors", "*.pkl")


def other_kind(path: Path, start: bytes) -> str | None:
    """What `path`, whose first bytes are `start`, is instead of a checkpoint, and what to do; None if it may be one."""
    if not start:
        return "empty"
    if kind := next((kind for beginning, kind in _STARTS if start.startswith(beginning)), None):
        return kind
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start[257:262] == b"ustar":
        return _kind_of_tar(path)
    if start.startswith(b"\x80"):
        return None
    is_onnx = start[:1] == b"\x08" and any(maker in start for maker in (b"pytorch", b"onnx"))
    suffix = ".onnx" if is_onnx else ".tflite" if start[4:8] == b"TFL3" else path.suffix.lower()
    return _SUFFIXES.get(suffix) or _kind_of_text(path, start)


def _kind_of_text(path: Path, start: bytes) -> str | None:
    if ".data-0" in path.name or start.startswith(b"model_checkpoint_path"):
        return _SUFFIXES[".index"]
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "a web page, not the file itself; download it again, from the link that gives the raw file"
    if not _is_text(start) or _is_pickle_of_protocol_0(start):
        return None
    what = "JSON" if text[:1] in {b"{", b"["} else "a text"
    return f"{what}, not weights; give the file of the weights, as by {SAVE}"


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return _kind_by_names(archive.namelist())
    except Exception:  # zipfile raises many kinds, depending on the wrong byte
        return f"damaged: its zip archive is cut or changed; copy or download it again, or save it again with {SAVE}"


def _kind_by_names(names: list[str]) -> str | None:
    """The kind of a zip archive by the names of its files."""
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return (
            "a TorchScript program; torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt') "
            "takes its weights out"
        )
    pickles = [name for name in names if name.endswith("data.pkl")]
    if any(name.count("/") <= 1 for name in pickles):
        return None
    if any(name.endswith(".weights.h5") for name in names):
        return f"a Keras model; open it with Keras, and {_CONVERT}: the order of its gates differs"
    if names and all(name.endswith(".npy") for name in names):
        return (
            "an archive of NumPy arrays; torch.save({name: torch.from_numpy(array) for name, array in "
            "numpy.load(FILE).items()}, 'weights.pt') makes a state dict of it"
        )
    if pickles:
        return "a zip archive around an unpacked checkpoint; zip the folder that has data.pkl in it"
    return "a zip archive, but not one of torch.save; unpack it, and give the file inside"


def _kind_of_tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            names = {member.name for member, _ in zip(archive, range(10), strict=False)}
    except (tarfile.TarError, OSError, EOFError):
        names = set()
    if {"pickle", "tensors", "storages"} <= names:
        return (
            "a checkpoint of PyTorch 0.1, which is not read here; torch.load(FILE, weights_only=False) reads it, and "
            f"runs what is in it; if you trust it, save the weights with {SAVE}"
        )
    return "a tar archive; unpack it with tar -xf, and give the file inside"


def kind_of_folder(path: Path) -> str:
    """What a folder may be that is given instead of a file."""
    if (path / "data.pkl").is_file():
        return "a folder: an unpacked checkpoint; zip it (zip -0 -r weights.pt FOLDER), and give the zip file"
    if (path / "saved_model.pb").is_file():
        return f"a folder: a TensorFlow model; {_CONVERT}"
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return "a folder: a run of Rill; export it with rill export RUN --out FOLDER, without --from-state-dict"
    if any(path.glob("*.distcp")):
        return (
            "a folder: a distributed checkpoint; python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            "FOLDER weights.pt makes a file of it"
        )
    files = sorted({file.name for pattern in _WEIGHT_FILES for file in path.glob(pattern)})
    return "a folder; give the file in it" + (f": {', '.join(files[:5])}" if files else " that has the weights")


def _is_text(start: bytes) -> bool:
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # cut within a character
    return True


def _is_pickle_of_protocol_0(start: bytes) -> bool:
    return start[:1] in {b"(", b"c", b"I", b"L"} and b"\n" in start and b"p0" in start[:400]
