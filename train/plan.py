"""What a run is to be, settled from the options, a recipe and the run folder before PyTorch is loaded."""

import shlex
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rill.train.config import (
    DEFAULT_EPOCHS,
    HORIZONS,
    LINES_WINDOW,
    NGRAM_TRAINING_FIELDS,
    OF_SYMBOLS,
    ModelConfig,
    TrainingConfig,
)
from rill.train.errors import ConfigError, RunError
from rill.train.options import words_of
from rill.train.record.folder import CONFIG, LOCK, RESUME_MAY_CHANGE, SUMMARY, RunConfig, checkpoints, load_config
from rill.train.record.recipe import Recipe, load_recipe
from rill.train.text.files import is_stream, name_of

# Options of which giving one discards the recipe's values for the others.
ALTERNATIVES = (
    HORIZONS,
    ("evaluate_every", "evaluate_epochs"),
    ("validation", "validation_characters", "validation_corpus"),
)
MAY_DIFFER_FROM_START = ("dropout",)
NOT_FOR_A_COMPLETE_RUN = ("device", "threads")  # which a script may give it again


@dataclass(frozen=True)
class Plan:
    """A run to begin, or, where there is a `stored` configuration in its folder, to resume.

    `start` is the run folder whose weights it begins with, if any; `complete` says that there is nothing left to do.
    """

    folder: Path
    model: ModelConfig
    training: TrainingConfig
    stored: RunConfig | None
    start: Path | None = None
    extend_vocabulary: bool = False
    complete: bool = False


def make_plan(options: dict[str, Any]) -> Plan:
    """Make the plan that `options` ask for: values by the names of the configurations' fields, plus `out`,
    `resume` and `extend_vocabulary`. Raises ConfigError, RunError.
    """
    given, options = options, dict(options)
    recipe = load_recipe(options.pop("recipe")) if "recipe" in options else None
    folder = run_folder(given)
    options.pop("out", None)
    extend, resume = options.pop("extend_vocabulary", False), options.pop("resume", False)
    stored = _stored_config(folder, resume)
    if stored is not None and (folder / SUMMARY).exists():
        _refuse_options(folder, stored, given)
        return Plan(folder, stored.model, stored.training, stored, complete=True)
    start = options.get("start", stored.training.start if stored else "")
    if extend and not start:
        raise ConfigError("--extend-vocabulary is for a run that continues another one on other text; give --from RUN")
    if checkpoints(folder):  # which hold the weights
        start = ""
    start_config = load_start_config(start, folder, stored) if start else None
    model, training = configure(folder, stored, recipe, start_config, options)
    if not training.corpus:
        raise ConfigError("no text to train on; give --corpus")
    _refuse_streams(folder, training, None if stored is None else options)
    return Plan(folder, model, training, stored, Path(start) if start else None, extend)


def run_folder(options: dict[str, Any]) -> Path:
    """The run folder that `options` name. Raises ConfigError."""
    if "out" in options:
        return Path(options["out"])
    if "recipe" in options:
        return Path("runs", Path(options["recipe"]).stem)
    raise ConfigError("give --out, the run folder")


def _stored_config(folder: Path, resume: bool) -> RunConfig | None:
    """The configuration of the run to resume in `folder`, if any. Raises RunError if something is in the way."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder")
    if not folder.exists() or all(path.suffix == ".tmp" or path.name == LOCK for path in folder.iterdir()):
        return None
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder} is not empty and is not a run folder: it has no {CONFIG}; give another --out")
    if not resume and (folder / SUMMARY).exists():
        further = shlex.join(["--from", str(folder), "--out", "NEW"])
        raise RunError(f"{folder} already holds a complete run; choose another --out, or train it further: {further}")
    if not resume:
        raise RunError(f"{folder} already holds a run; continue it with --resume or choose another --out")
    return load_config(folder)


def _refuse_options(folder: Path, stored: RunConfig, options: dict[str, Any]) -> None:
    """Raise RunError for `options` that the complete run in `folder` does not have."""
    changes: dict[str, list[str]] = {}  # the words of the command line that ask for them
    for section in (stored.training, stored.model):
        for declared in fields(section):
            name = declared.name
            if name in options and name not in NOT_FOR_A_COMPLETE_RUN and options[name] != getattr(section, name):
                changes[name] = words_of(declared, options[name])
    if options.get("extend_vocabulary") and not stored.training.start:
        changes["extend_vocabulary"] = ["--extend-vocabulary"]
    if not changes:
        return
    complaint = f"{folder} is complete, without {shlex.join(word for words in changes.values() for word in words)}"
    if stored.model.task == "tag":
        raise RunError(f"{complaint}; train another one, with another --out")
    model_names = {declared.name for declared in fields(ModelConfig)}
    fixed = set(_differences(stored.model, {name: options[name] for name in changes.keys() & model_names}))
    further = ["rill", "train", "--from", str(folder), "--out", "NEW"]
    further += [] if "corpus" in changes else ["--corpus", *stored.training.corpus]
    further += [word for name, words in changes.items() if name not in {*fixed, "start"} for word in words]
    way = "to train another model, choose another --out; this one" if changes.keys() & fixed else "it"
    raise RunError(f"{complaint}; {way} is trained further by {shlex.join(further)}")


def _refuse_streams(folder: Path, training: TrainingConfig, resumed: dict[str, Any] | None) -> None:
    """Raise an error for a text that can be read only once, and is to be read again.

    `resumed` holds the options that a run is resumed with. Raises ConfigError and RunError.
    """
    streams: list[str] = []
    for name in ("corpus", "validation_corpus"):
        for spec in filter(is_stream, getattr(training, name)):
            if resumed is not None and name not in resumed:
                flag = "--" + name.replace("_", "-")
                raise RunError(
                    f"{folder} was started with a text from {name_of(spec)}, which cannot be read again; give the text"
                    f" with {flag} FILE, or pipe it again with {flag} -"
                )
            streams.append(name_of(spec))
    for stream in streams:
        if streams.count(stream) > 1:
            raise ConfigError(f"{stream} can be read only once, but is given {streams.count(stream)} times")


def load_start_config(start: str, folder: Path, stored: RunConfig | None) -> RunConfig:
    """The configuration of the run folder `start`, which a new run, or the `stored` one of `folder`, begins with.

    Raises ConfigError for a tagger, and RunError if `start` is not a run or does not fit `stored`.
    """
    config = load_config(Path(start))
    if config.model.task == "tag":
        raise ConfigError(f"{start} is a tagger; --from works only with runs that predict the next character")
    if stored is not None:
        same_model = not _differences(config.model, asdict(stored.model))
        if not same_model or not set(config.vocabulary.symbols) <= set(stored.vocabulary.symbols):
            raise RunError(f"{start} has another model or vocabulary than the run that {folder} was started from")
    return config


def configure(
    folder: Path,
    stored: RunConfig | None,
    recipe: Recipe | None,
    start: RunConfig | None,
    options: dict[str, Any],
) -> tuple[ModelConfig, TrainingConfig]:
    """Put the given `options` into the stored, the recipe's or the default configuration.

    Raises ConfigError, and RunError for an option that contradicts the stored configuration.
    """
    model_names = {declared.name for declared in fields(ModelConfig)}
    model_options = {name: value for name, value in options.items() if name in model_names}
    training_options = {name: value for name, value in options.items() if name not in model_names}
    if any(name in training_options for name in HORIZONS):
        training_options = dict.fromkeys(HORIZONS) | training_options
    if recipe is not None and not (stored is not None and stored.training.recipe == recipe.name):
        discarded = {name for group in ALTERNATIVES if training_options.keys() & set(group) for name in group}
        if model_options.get("ngrams") == 1:
            recipe = recipe.without_tables()
        values = {name: value for name, value in recipe.training.items() if name not in discarded}
        model_options = recipe.model | model_options
        training_options = values | training_options | {"recipe": recipe.name}
    if stored is not None:
        return _resumed(folder, stored, model_options, training_options)
    if recipe is not None and "corpus" not in training_options:
        raise ConfigError(f"recipe {recipe.name} needs --corpus{f': {recipe.wants}' if recipe.wants else ''}")
    if not any(training_options.get(name) for name in HORIZONS):
        training_options["epochs"] = training_options.get("epochs", DEFAULT_EPOCHS)
    if start is not None:
        training_options = _symbols_of(start, training_options)
    training = TrainingConfig(**_defaults_of_lines(training_options))
    if start is None:
        model = ModelConfig(**model_options)
    else:
        for name in _differences(start.model, model_options):
            before = getattr(start.model, name)
            raise ConfigError(f"{training.start} has {name} {before!r}, not {model_options[name]!r}")
        model = replace(start.model, **model_options)
    if model.ngrams == 1 and training_options.keys() & set(NGRAM_TRAINING_FIELDS):
        raise ConfigError(f"{' and '.join(NGRAM_TRAINING_FIELDS)} are for n-gram tables; give --ngrams, 2 or more, too")
    return model, training


def _differences(start: ModelConfig, options: dict[str, Any]) -> list[str]:
    """The names of `options` by which a model differs from the one it starts with, but must not.

    It may have more n-gram tables: the new ones are zero, so that at first it computes the same.
    """
    may_differ = {*MAY_DIFFER_FROM_START}
    if options.get("ngrams", start.ngrams) >= start.ngrams:
        may_differ.add("ngrams")
    if start.ngrams == 1:
        may_differ.add("ngram_rows")
    return [name for name in options if options[name] != getattr(start, name) and name not in may_differ]


def _symbols_of(start: RunConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The training `options` of a run from `start`, whose texts become symbols in the same way. Raises ConfigError."""
    for name in OF_SYMBOLS:
        value = getattr(start.training, name)
        if options.get(name, value) != value:
            raise ConfigError(
                f"{options['start']} was trained with {name} {value!r}, not {options[name]!r}; its symbols stay"
            )
    return options | {name: getattr(start.training, name) for name in OF_SYMBOLS}


def _defaults_of_lines(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the values that a run on lines has unless others are given: held-out lines are drawn."""
    if not options.get("lines"):
        return options
    defaults: dict[str, Any] = {"window": LINES_WINDOW}
    if options.get("validation", True) and not options.get("validation_corpus"):
        defaults["held_out"] = "lines"
    return defaults | options


def _resumed(
    folder: Path, stored: RunConfig, model_options: dict[str, Any], training_options: dict[str, Any]
) -> tuple[ModelConfig, TrainingConfig]:
    """The stored configuration, with the options that a resumed run may change."""
    for section, given in ((stored.model, model_options), (stored.training, training_options)):
        for name, value in given.items():
            before = getattr(section, name)
            if value != before and name not in RESUME_MAY_CHANGE:
                raise RunError(
                    f"{folder} was started with {name} {before!r}, not {value!r}; leave the option (or --recipe) out"
                    " to continue it, or choose another --out"
                )
    return stored.model, replace(stored.training, **training_options)
