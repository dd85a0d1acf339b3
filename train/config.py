"""What a run is made of: the model's configuration and the training's, as stored in config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from train.errors import ConfigError

MOST_THREADS = 1024


class _Section:
    """One section of config.json: a dataclass whose fields are the keys."""

    @classmethod
    def from_json(cls, section: object) -> Self:
        """The section from its decoded JSON; keys left out take their defaults. Raises ConfigError."""
        if not isinstance(section, Mapping):
            raise ConfigError(f"{cls.__name__} must be a JSON object, not {type(section).__name__}")
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # every subclass is a dataclass
        unknown = sorted(set(section) - known)
        if unknown:
            raise ConfigError(f"{cls.__name__} does not know {', '.join(map(repr, unknown))}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in section.items()})

    def to_json(self) -> dict[str, Any]:
        """The section as JSON-ready values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass


@dataclass(frozen=True)
class ModelConfig(_Section):
    """A recurrent character model. Raises ConfigError for values that make no model or are not supported yet.

    `embedding` 0 means one-hot input. `bias` is about the cell: the output layer always has one.
    `dropout` acts between the layers and before the output layer, in training only.
    """

    task: str = "generate"
    cell: str = "gru"
    reset: str = "after"
    layers: int = 1
    hidden: int = 256
    embedding: int = 0
    bias: bool = True
    residual: bool = False
    bidirectional: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, supported in [
            ("task", "generate"),
            ("cell", "gru"),
            ("reset", "after"),
            ("residual", False),
            ("bidirectional", False),
        ]:
            value = getattr(self, name)
            if value != supported:
                raise ConfigError(f"{name} {value!r} is not supported yet; only {supported!r} is")
        _require_whole(self, "layers", 1)
        _require_whole(self, "hidden", 1)
        _require_whole(self, "embedding", 0)
        _require_number(self, "dropout", 0.0, 1.0)
        if not isinstance(self.bias, bool):
            raise ConfigError(f"bias must be true or false, not {self.bias!r}")


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """How a model is trained. Raises ConfigError for impossible values.

    Exactly one of `steps`, `epochs` and `max_minutes` says how long. `window` is the number of characters between
    truncations of backpropagation, `evaluate_every` is in steps (0: twenty evaluations over the run), `sample_every`
    is in evaluations (0: only at the end), `validation` is the held-out fraction at the end of the text.
    `corpus_sha256` is the digest of the text itself, so that a resumed run knows it reads the same one.
    """

    corpus: tuple[str, ...] = ()
    corpus_sha256: str = ""
    min_count: int = 1
    validation: float = 0.1
    steps: int | None = None
    epochs: int | None = None
    max_minutes: float | None = None
    batch: int = 32
    window: int = 64
    sampling: str = "sequential"
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    evaluate_every: int = 0
    sample_every: int = 4
    prefix: tuple[str, ...] = ("",)
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if sum(length is not None for length in (self.steps, self.epochs, self.max_minutes)) != 1:
            raise ConfigError("give exactly one of steps, epochs and max_minutes")
        for name in ("steps", "epochs"):
            if getattr(self, name) is not None:
                _require_whole(self, name, 1)
        if self.max_minutes is not None:
            _require_number(self, "max_minutes", 0.0, low_included=False)
        for name, least in [("min_count", 1), ("batch", 1), ("window", 1), ("evaluate_every", 0), ("sample_every", 0)]:
            _require_whole(self, name, least)
        _require_whole(self, "seed", 0, 2**64 - 1)
        _require_whole(self, "threads", 0, MOST_THREADS)
        for name in ("corpus", "prefix"):
            _require_texts(self, name)
        if self.sampling not in ("sequential", "random"):
            raise ConfigError(f"sampling must be 'sequential' or 'random', not {self.sampling!r}")
        _require_number(self, "validation", 0.0, 1.0)
        _require_number(self, "learning_rate", 0.0, low_included=False)
        _require_number(self, "weight_decay", 0.0)
        _require_number(self, "clip", 0.0, low_included=False)
        _require_number(self, "temperature", 0.0)


def _require_whole(section: _Section, name: str, least: int, most: int | None = None) -> None:
    value = getattr(section, name)
    if type(value) is not int or value < least or (most is not None and value > most):  # bool is an int; it is no count
        limit = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} must be a whole number of at least {least}{limit}, not {value!r}")


def _require_texts(section: _Section, name: str) -> None:
    value = getattr(section, name)
    if not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
        raise ConfigError(f"{name} must be a list of strings, not {value!r}")
    for text in value:
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of the command line that were no UTF-8 come as lone surrogates
            raise ConfigError(f"{name} {text!r} is not UTF-8; a file can be renamed, or read with --corpus -") from None


def _require_number(
    section: _Section, name: str, low: float, high: float = float("inf"), low_included: bool = True
) -> None:
    """Require low <= value < high, or low < value < high."""
    value = getattr(section, name)
    is_number = type(value) in (int, float)
    if not (is_number and (low < value < high or (low_included and value == low))):
        least = "at least" if low_included else "more than"
        most = "" if high == float("inf") else f" and less than {high:g}"
        raise ConfigError(f"{name} must be a finite number, {least} {low:g}{most}, not {value!r}")
