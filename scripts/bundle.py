"""Make the bundle that ships with Rill: train its recipe, export it as int8, and put it into rill/demo/. `make bundle`.

The same machine and versions give the same bytes: one thread, a fixed number of steps, and a manifest without times.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rill.bundle import MANIFEST, BundleError, read_bundle
from rill.demo import bundle_folder
from rill.export.lock import exclusive
from rill.export.write import is_replaceable, manifest_of, write_bundle
from rill.processes import python_command, python_environment
from rill.train.record.folder import CONFIG

RECIPE = "shakespeare-small"
MOST_BYTES = 1_500_000
# Each library has a variable of its own, and PyTorch's part in the export reads no recipe.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OF_THE_RUN = ("seconds", "chars_per_second")  # in summary.json: differ every time


def main() -> int:
    """Run the command; the exit status: 0 if the bundle is in place, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=bundle_folder(), help="the bundle's folder (default: %(default)s)")
    parser.add_argument("--steps", help="train for other steps than the recipe's, to try this program")
    options = parser.parse_args()
    folder = options.out.resolve()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # removes the temporary folder
    try:
        if options.steps and folder == bundle_folder().resolve():
            raise BundleError("--steps makes another bundle than the one that ships; give it another --out")
        if folder.exists() and not is_replaceable(folder):
            raise BundleError(f"{folder} exists and is not a bundle; give another --out")
        with tempfile.TemporaryDirectory(prefix="rill-bundle-") as work:
            _make(Path(work), folder, options.steps)
    except (BundleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _make(work: Path, folder: Path, steps: str | None) -> None:
    """Train and export in the folder `work`; put the bundle into `folder`. Raises BundleError, OSError."""
    name = folder.name
    _rill(work, "train", "--recipe", RECIPE, "--out", name, *(["--steps", steps] if steps else []))
    _rill(work, "export", name, "--out", "bundles", "--precision", "int8", *(["--allow-loss"] if steps else []))
    _ship(work / name, work / "bundles" / f"{name}-int8", folder)


def _rill(work: Path, command: str, *arguments: str) -> None:
    words, environment = python_command(f"rill.{command}", *arguments), python_environment() | ONE_THREAD
    status = subprocess.run(words, cwd=work, env=environment, check=False).returncode
    if status:
        raise BundleError(f"rill {command} ended with status {status}; the bundle is as it was")


def _ship(run: Path, exported: Path, folder: Path) -> None:
    """Put the verified bundle `exported` of `run` into `folder`, under that folder's name."""
    bundle = replace(read_bundle(exported), name=folder.name)
    made = json.loads((exported / MANIFEST).read_bytes())
    training = {name: value for name, value in made["training"].items() if name not in OF_THE_RUN}
    config = json.loads((run / CONFIG).read_bytes())["training"]
    manifest = manifest_of(bundle, training | {"config": config}, made["parity"])
    if (size := _size(exported)) > MOST_BYTES:
        raise BundleError(f"it has {size:,} bytes, more than {MOST_BYTES:,}; make it smaller ({RECIPE}.toml)")
    with exclusive(folder):
        changed = _manifest(folder) != manifest or read_bundle(folder) != bundle
        if changed:
            write_bundle(bundle, manifest, folder)
    state = "written" if changed else "unchanged"
    print(f"{folder}: {state}, {_size(folder):,} bytes, model_id {bundle.model_id[:12]}")
    print(f"validation {training['val_loss']:.4f} nats a character in fp32; {_int8_loss(manifest)}")


def _manifest(folder: Path) -> object:
    """The manifest in `folder`, or None if it holds no bundle, or a damaged one."""
    try:
        read_bundle(folder)
        return json.loads((folder / MANIFEST).read_bytes())
    except (BundleError, OSError, ValueError):
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _int8_loss(manifest: Mapping[str, Any]) -> str:
    loss = manifest["parity"]["loss"]
    int8, fp32 = (loss[name] * math.log(2) for name in ("bits_per_char", "bits_per_char_fp32"))
    return f"on {loss['characters']:,} characters of it fp32 {fp32:.4f}, int8 {int8:.4f}"


if __name__ == "__main__":
    sys.exit(main())
