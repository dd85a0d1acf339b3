"""Write a web page that runs a bundle's model in the browser, without a server of Rill's.

    rill page bundles/shakespeare --out site/

The folder works from any static web server and asks no other host for anything. It needs onnxruntime-web, which npm
fetches; --onnxruntime-web names an unpacked package instead. Exit status: 0 the page is written, 1 a file cannot be
written, 2 something else is wrong.
"""

import argparse
import json
import math
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rill.bundle import CONTEXT, MANIFEST, Bundle, read_bundle
from rill.files import naming
from rill.page.errors import PageError
from rill.page.runtime import PACKAGE, VERSIONS, Runtime, fetch_runtime, read_runtime
from rill.page.site import check_target, write_site
from rill.page.vocabulary import described

FORMAT = 1  # of model.json
_TOLD = ("val_loss", "parameters")  # of the training: what the page shows
_HERE = Path(__file__).parent
_SUFFIXES = (".html", ".css", ".js", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=_path, help="a bundle folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=_path, help="the folder to write")
    parser.add_argument(
        "--onnxruntime-web",
        metavar="DIR",
        type=_path,
        help=f"the unpacked npm package {PACKAGE}, 1.30 or later (default: npm fetches {VERSIONS})",
    )
    parser.add_argument(
        "--force", action="store_true", help="write into a folder that holds other files, which stay there"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ValueError and OSError."""
    with _ended_by_sigterm():
        bundle = read_bundle(options.bundle)
        _check_model(bundle, options.bundle)
        vocabulary = _described(bundle, options.bundle)
        sources = {"bundle": options.bundle}
        if options.onnxruntime_web:
            sources["package"] = options.onnxruntime_web
        target = check_target(options.out, options.force, sources)
        runtime = read_runtime(options.onnxruntime_web) if options.onnxruntime_web else fetch_runtime()
        files = _files(bundle, vocabulary, _training(options.bundle), runtime)
        with naming(options.out):
            write_site(target, files)
    size = sum(map(len, files.values())) / 1e6
    print(f"{options.out}: {bundle.name} with {PACKAGE} {runtime.version}, {size:.1f} MB")
    if bundle.precision == "int8":
        print("The browser computes in float, a server in int8: their texts differ.")
    folder = shlex.quote(str(options.out))
    print(f"Look at it: python -m http.server --bind 127.0.0.1 --directory {folder}, then http://127.0.0.1:8000")
    return 0


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def _check_model(bundle: Bundle, folder: Path) -> None:
    """Raise PageError unless the model can generate a text, character by character."""
    if bundle.model["task"] != "generate":
        raise PageError(f"{folder} is a tagging model, which generates no text; name a model for generation")
    if bundle.model["bidirectional"]:
        raise PageError(f"{folder} is bidirectional: it reads texts from both ends, so it cannot generate one")


def _training(folder: Path) -> dict[str, Any]:
    """Return what the page shows of a training; the rest may name files of the person who trained."""
    training = json.loads((folder / MANIFEST).read_bytes()).get("training")
    if not isinstance(training, dict):
        return {}
    values = {key: training.get(key) for key in _TOLD}
    return {key: value for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}


def _described(bundle: Bundle, folder: Path) -> dict[str, Any]:
    try:
        return described(bundle.vocabulary)
    except PageError as error:
        raise PageError(f"{folder} cannot have a page: {error}") from None


def _files(bundle: Bundle, vocabulary: dict[str, Any], training: dict[str, Any], runtime: Runtime) -> dict[str, bytes]:
    """Return the files of the page by their names."""
    units = [(name, shape) for name, shape in bundle.states if name != CONTEXT]
    description = {
        "format": FORMAT,
        "name": bundle.name,
        "model_id": bundle.model_id,
        "precision": bundle.precision,
        "model": {key: bundle.model[key] for key in ("cell", "layers", "hidden")},
        "states": [{"name": name, "next": f"next_{name}", "shape": list(shape)} for name, shape in units],
        "context": bundle.context_length,
        "training": training,
        **vocabulary,
    }
    files = {name: path.read_bytes() for name, path in _static_files().items()}
    files |= {f"onnxruntime/{name}": content for name, content in runtime.files.items()}
    files["model/model.onnx"] = bundle.graphs["model"]
    files["model/model.json"] = (json.dumps(description, ensure_ascii=False) + "\n").encode()
    return files


def _static_files() -> dict[str, Path]:
    """Return the page's own files: those of `standalone`, and the folder `shared`."""
    found = {}
    for folder, prefix in (("standalone", ""), ("shared", "shared/")):
        for path in sorted((_HERE / folder).iterdir()):
            if path.suffix in _SUFFIXES:
                found[prefix + path.name] = path
    return found


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the context like an error, with exit status 143."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
