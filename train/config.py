"""What a run is made of: the model's configuration and the training's, as stored in config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rill.train.errors import ConfigError

MOST_THREADS = 1024
MOST_LAYERS, MOST_UNITS = 1000, 2**20  # far above any real model: so that shapes can be computed, and soon
PREPARATIONS = ("none", "letters", "line")
OPTIMIZERS = ("adamw", "sgd", "rmsprop")
INITIALIZATIONS = ("default", "normal", "orthogonal")


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


CELLS = ("gru", "lstm", "rnn")


@dataclass(frozen=True)
class ModelConfig(_Section):
    """A recurrent model over symbols. Raises ConfigError for values that make no model.

    A `generate` model predicts the next symbol; a `tag` model labels every symbol, and may be bidirectional. `reset` is
    where a GRU's reset gate acts: `after` the recurrent product (`nn.GRU`, cuDNN) or `before` it (Cho et al.).
    `embedding` 0 means one-hot input. `bias` is about the cell: the output layer always has one. With `residual`, layer
    l + 1 reads the sum of what layer l read and gave, from the second layer on, and the output layer the last sum.
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
        _require_one_of(self, "task", ("generate", "tag"))
        _require_one_of(self, "cell", CELLS)
        _require_one_of(self, "reset", ("after", "before"))
        for name in ("bias", "residual", "bidirectional"):
            _require_truth(self, name)
        _require_whole(self, "layers", 1)
        _require_whole(self, "hidden", 1)
        _require_whole(self, "embedding", 0)
        for name, most in (("layers", MOST_LAYERS), ("hidden", MOST_UNITS), ("embedding", MOST_UNITS)):
            if getattr(self, name) > most:
                raise ConfigError(f"{name} must be at most {most}, not {getattr(self, name)}")
        _require_number(self, "dropout", 0.0, 1.0)
        if self.reset == "before" and self.cell != "gru":
            raise ConfigError(f"reset 'before' is about GRUs; {self.cell} has no reset gate")
        if self.bidirectional and self.task != "tag":
            raise ConfigError("a bidirectional model reads ahead, so it can tag but not generate; use --task tag")

    @property
    def directions(self) -> int:
        """2 for a bidirectional model, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def state_parts(self) -> tuple[str, ...]:
        """What the state is made of: h, and an LSTM's c."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def features(self) -> int:
        """The width of a layer's output, and of what the output layer reads."""
        return self.hidden * self.directions


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """How a model is trained. Raises ConfigError for impossible values.

    Data: `prepare` cleans the text (`letters`: lower-case letters and spaces; `line`: newlines become spaces).
    `characters` keeps the first so many of them (0: all), `validation_characters` holds out the next so many, otherwise
    `validation` is the held-out fraction at the end, unless `validation_corpus` is read instead. `corpus_sha256` is the
    digest of the data itself, so that a resumed run knows it reads the same.

    Length: exactly one of `steps`, `epochs` and `max_minutes`. `patience` stops a run after so many evaluations that
    did not improve the validation loss (0: never).

    A step: `accumulate` batches of `batch` windows of `window` characters between truncations of backpropagation;
    `learning_rate` rises over `warmup` steps and stays, or falls to 1 % along a cosine; `clip` is the largest norm of
    the gradient (0: any). `scratch` computes the cell by its written-out equations. `precision` bf16 is autocast on a
    GPU. `keep` says which weights the run folder ends with: the best by validation, or the last.

    Evaluations: every `evaluate_epochs` epochs, or every `evaluate_every` steps, or (both 0) twenty times over the run;
    samples every `sample_every` evaluations (0: only at the end).

    `start` is the run folder that the weights came from, if they were not drawn; `recipe` names where these values come
    from.
    """

    recipe: str = ""
    corpus: tuple[str, ...] = ()
    validation_corpus: tuple[str, ...] = ()
    corpus_sha256: str = ""
    prepare: str = "none"
    characters: int = 0
    min_count: int = 1
    validation: float = 0.1
    validation_characters: int = 0
    start: str = ""
    steps: int | None = None
    epochs: int | None = None
    max_minutes: float | None = None
    patience: int = 0
    batch: int = 32
    window: int = 64
    sampling: str = "sequential"
    accumulate: int = 1
    optimizer: str = "adamw"
    momentum: float = 0.0
    learning_rate: float = 5e-3
    warmup: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    initialization: str = "default"
    scratch: bool = False
    precision: str = "fp32"
    keep: str = "best"
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    evaluate_every: int = 0
    evaluate_epochs: int = 0
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
        for name in ("min_count", "batch", "window", "accumulate"):
            _require_whole(self, name, 1)
        for name in (
            *("characters", "validation_characters", "patience", "warmup"),
            *("evaluate_every", "evaluate_epochs", "sample_every"),
        ):
            _require_whole(self, name, 0)
        _require_whole(self, "seed", 0, 2**64 - 1)
        _require_whole(self, "threads", 0, MOST_THREADS)
        for name in ("corpus", "validation_corpus", "prefix"):
            _require_texts(self, name)
        _require_one_of(self, "prepare", PREPARATIONS)
        _require_one_of(self, "sampling", ("sequential", "random"))
        _require_one_of(self, "optimizer", OPTIMIZERS)
        _require_one_of(self, "schedule", ("cosine", "constant"))
        _require_one_of(self, "initialization", INITIALIZATIONS)
        _require_one_of(self, "precision", ("fp32", "bf16"))
        _require_one_of(self, "keep", ("best", "last"))
        _require_truth(self, "scratch")
        _require_number(self, "validation", 0.0, 1.0)
        _require_number(self, "momentum", 0.0, 1.0)
        _require_number(self, "learning_rate", 0.0, low_included=False)
        _require_number(self, "weight_decay", 0.0)
        _require_number(self, "clip", 0.0)
        _require_number(self, "temperature", 0.0)
        if self.evaluate_every and self.evaluate_epochs:
            raise ConfigError("give evaluate_every (steps) or evaluate_epochs, not both")
        if self.momentum and self.optimizer == "adamw":
            raise ConfigError("momentum is for sgd and rmsprop; AdamW has its own")
        if self.validation_characters and not self.characters:
            raise ConfigError("validation_characters are the ones after the first --characters; give that too")
        if self.validation_characters and self.validation_corpus:
            raise ConfigError("give validation_characters or validation_corpus, not both")
        if self.patience and not self.holds_out:
            raise ConfigError("patience is about the validation loss; with validation 0 there is none")

    @property
    def holds_out(self) -> bool:
        """Whether there is to be held-out data."""
        return bool(self.validation or self.validation_characters or self.validation_corpus)


def _require_one_of(section: _Section, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(section, name)
    if value not in choices:
        raise ConfigError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}")


def _require_truth(section: _Section, name: str) -> None:
    value = getattr(section, name)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r}")


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
