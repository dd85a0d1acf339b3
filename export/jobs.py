"""The jobs of one call of `rill export`: each makes or checks one bundle. Loads neither PyTorch nor ONNX Runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rill.export.errors import UnsupportedError

RESETS = ("after", "before")  # where a GRU's reset gate acts: after the recurrent product, or before it
UPDATES = ("keeps", "replaces")  # what a GRU's update gate of 1 does to the state


@dataclass(frozen=True)
class Checkpoint:
    """The file of a foreign state dict, and how to read it (`rill.export.foreign.run`)."""

    path: Path
    vocabulary: Path
    rename: Mapping[str, str] = field(default_factory=dict)
    reset: str = RESETS[0]
    update: str = UPDATES[0]


@dataclass(frozen=True)
class Job:
    """One bundle to make or to check. `source` is the run folder or the file, as the user named it.

    `problem` says why the job cannot be run, if that is already known.
    """

    source: str
    name: str
    out: Path
    precision: str = "fp32"
    force: bool = False
    check: bool = False
    allow_loss: bool = False
    checkpoint: Checkpoint | None = None
    problem: str = ""

    def __str__(self) -> str:
        return self.source if self.precision == "fp32" else f"{self.source} ({self.precision})"

    @property
    def bundle(self) -> str:
        """The name of the bundle's folder in `out`."""
        return bundle_folder_name(self.name, self.precision)


def bundle_folder_name(name: str, precision: str) -> str:
    """The name of the bundle's folder: NAME, or NAME-int8."""
    return name if precision == "fp32" else f"{name}-{precision}"


def require_bundle_name(name: str) -> None:
    """Raise UnsupportedError unless a bundle's folder can have this name."""
    if name in ("", ".", "..") or any(character in "/\\\0" for character in name):
        raise UnsupportedError(f"{name!r} cannot be the name of a bundle: it becomes a folder in --out")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"{name!r} cannot be the name of a bundle: it is not UTF-8; rename the run") from None
