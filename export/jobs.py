"""The jobs of one call of `rill export`: each makes or checks one bundle. Loads neither PyTorch nor ONNX Runtime."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rill.bundle import require_name
from rill.export.errors import UnsupportedError

RESETS = ("after", "before")  # where a GRU's reset gate acts: after the recurrent product, or before it
UPDATES = ("keeps", "replaces")  # what a GRU's update gate of 1 does to the state


@dataclass(frozen=True)
class Symbols:
    """What the list of a foreign vocabulary's symbols does not say.

    `tokenizer` is how text becomes symbols, as `rill.train.text.tokenizers.tokenizer_of` reads it. `start` is read
    before every text, one of `ends` ends it, and `unknown`, which stands for unknown characters, is renamed `<unk>`.
    """

    tokenizer: str = "chars"
    start: str = ""
    ends: tuple[str, ...] = ()
    unknown: str = ""


CHARACTERS_ONLY = Symbols()


@dataclass(frozen=True)
class Checkpoint:
    """The file of a foreign state dict, and how to read it (`rill.export.foreign.run`).

    `vocabulary` None means the one that lies in the file. `text` is what the model is measured on.
    """

    path: Path
    vocabulary: Path | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    reset: str = RESETS[0]
    update: str = UPDATES[0]
    text: Path | None = None
    symbols: Symbols = CHARACTERS_ONLY


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


def require_bundle_name(name: str, precision: str = "fp32") -> None:
    """Raise UnsupportedError unless a bundle of this name and precision can be written, and read by the server."""
    try:
        require_name(bundle_folder_name(name, precision) if name else name)
    except ValueError as error:
        raise UnsupportedError(
            f"{name[:80]!r} cannot be the name of a bundle: {error}; rename the run, or for a checkpoint give --name"
        ) from None
