"""The files of onnxruntime-web that a page needs: from a folder, or fetched by npm. None of it is part of Rill."""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rill.page.errors import PageError

PACKAGE = "onnxruntime-web"
VERSIONS = "~1.30.0"  # that npm fetches: the pages were tried with 1.30.0
# The package's files, and their names in a page. Some servers do not know that `.mjs` is JavaScript.
FILES = {
    "dist/ort.wasm.bundle.min.mjs": "ort.js",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
# What a user may name: the package, what `npm pack` gives when unpacked, a project, or its node_modules.
_PLACES = (".", "package", f"node_modules/{PACKAGE}", PACKAGE)
_LARGEST = 200 * 2**20  # bytes of a file, far more than any version has
_NPM_SECONDS = 600


@dataclass(frozen=True)
class Runtime:
    """A version of onnxruntime-web: its files by their names in a page."""

    version: str
    files: Mapping[str, bytes]


def read_runtime(folder: Path) -> Runtime:
    """Read the files from an unpacked npm package. Raises PageError."""
    named = f"--onnxruntime-web {folder}"
    try:
        if not folder.is_dir():
            hint = "; unpack it and name the folder" if folder.is_file() else ""
            raise PageError(f"{named} is not a folder{hint}")
        for place in _PLACES:
            package = folder / place
            if (package / "package.json").is_file():
                version = _version(package / "package.json")
                if version:
                    return Runtime(version, _files(package, f"{named} ({PACKAGE} {version})"))
    except OSError as error:
        raise PageError(f"{named} cannot be read: {error.filename}: {error.strerror}") from None
    raise PageError(f"{named} is not the npm package {PACKAGE}: it has no package.json of that name")


def fetch_runtime() -> Runtime:
    """Fetch the package by npm, into a folder that is removed again. Raises PageError, which names the other way."""
    wanted = f"{PACKAGE}@{VERSIONS}"
    by_hand = f"run npm pack {wanted} where it works, unpack the file, and name the folder: --onnxruntime-web FOLDER"
    npm = shutil.which("npm")
    if npm is None:
        raise PageError(f"the page needs {PACKAGE}, and there is no npm here to fetch it; {by_hand}")
    with tempfile.TemporaryDirectory(prefix="rill-page-", ignore_cleanup_errors=True) as temporary:
        print(f"fetching {wanted} by npm …", file=sys.stderr, flush=True)
        folder = Path(temporary)
        command = [npm, "pack", "--ignore-scripts", "--no-update-notifier", "--pack-destination", temporary, wanted]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_NPM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PageError(f"npm has not fetched {wanted} in {_NPM_SECONDS} s; {by_hand}") from None
        except OSError as error:
            raise PageError(f"npm cannot be started ({error.strerror}); {by_hand}") from None
        archives = sorted(folder.glob("*.tgz"))
        if done.returncode or not archives:
            raise PageError(f"npm cannot fetch {wanted} ({_reason(done.stderr)}); {by_hand}")
        try:
            _unpack(archives[-1], folder)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise PageError(f"npm fetched {wanted}, but the file is damaged ({error}); {by_hand}") from None
        return read_runtime(folder)


def _version(manifest: Path) -> str:
    """Return the version in a package.json, or nothing if it is another package's."""
    try:
        content = json.loads(manifest.read_bytes()[:_LARGEST])
    except (ValueError, RecursionError):
        return ""
    if not isinstance(content, dict) or content.get("name") != PACKAGE:
        return ""
    return str(content.get("version", "of no version"))[:40]


def _files(package: Path, named: str) -> dict[str, bytes]:
    files = {}
    for name, name_in_page in FILES.items():
        path = package / name
        if not path.is_file():
            raise PageError(f"{named} has no {name}; name a whole package, of version {VERSIONS.strip('~')} or later")
        if not 0 < (size := path.stat().st_size) <= _LARGEST:
            raise PageError(f"{named}: {name} has {size} bytes, so it is damaged; unpack the package again")
        files[name_in_page] = path.read_bytes()
    if not files["ort-wasm-simd-threaded.wasm"].startswith(b"\0asm"):
        raise PageError(f"{named}: dist/ort-wasm-simd-threaded.wasm is not WebAssembly; unpack the package again")
    return files


def _reason(errors: str) -> str:
    """Return what npm says is wrong, in a line."""
    lines = [line.removeprefix("npm").strip() for line in errors.splitlines()]
    told = [
        line.removeprefix("error").removeprefix("ERR!").strip() for line in lines if line.startswith(("error", "ERR!"))
    ]
    return "; ".join(told[:3])[:300] or "it gives no reason"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the needed files of an npm package into `folder`/package."""
    wanted = {f"package/{name}" for name in ("package.json", *FILES)}
    with tarfile.open(archive) as source:
        for member in source:
            if member.name in wanted and member.isreg() and member.size <= _LARGEST:
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = source.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
