"""Recipes: named configurations of published results, one TOML file each in the folder `recipes` beside this module."""

import math
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from rill.train.config import NGRAM_TRAINING_FIELDS, ModelConfig, TrainingConfig
from rill.train.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent / "recipes"
TARGETS = ("perplexity", "val_loss", "val_accuracy")
SECTIONS = {
    "model": {field.name for field in fields(ModelConfig)},
    # The run itself sets the first two; the third is a folder on its own machine.
    "training": {field.name for field in fields(TrainingConfig)} - {"recipe", "corpus_sha256", "start"},
    "published": {"result", "source"},
    "target": set(TARGETS),
}


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    `model` and `training` hold the values that differ from the defaults, by the field names of ModelConfig and
    TrainingConfig, which check them. `wants` describes the text to give with --corpus, if the recipe names none.
    `published` is the `result` of the published run and its `source`. `target` is what our run should reach:
    `perplexity` (exp of the training loss) and `val_loss` (nats per character) at most, `val_accuracy` at least.
    """

    name: str
    description: str
    wants: str
    model: dict[str, Any]
    training: dict[str, Any]
    published: dict[str, str]
    target: dict[str, float]

    def without_tables(self) -> Self:
        """The recipe without the values that only models with n-gram tables have."""
        names = {"ngram_rows", *NGRAM_TRAINING_FIELDS}
        model, training = (
            {name: value for name, value in section.items() if name not in names}
            for section in (self.model, self.training)
        )
        return replace(self, model=model, training=training)


def recipe_names() -> list[str]:
    """The names of the recipes in the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Load the recipe of that name, or the file `name` if it ends in .toml. Raises ConfigError."""
    if name.endswith(".toml"):
        path = Path(name)
    elif name in recipe_names():
        path = FOLDER / f"{name}.toml"
    else:
        raise ConfigError(
            f"there is no recipe {name!r}; choose one of {', '.join(recipe_names())}, or give the path of a .toml file"
            f"{did_you_mean(name, recipe_names())}"
        )
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {name} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"recipe {name} is damaged: {error}") from None
    return _recipe(name, document)


def _recipe(name: str, document: dict[str, Any]) -> Recipe:
    texts = {key: document.pop(key, "") for key in ("description", "wants")}
    sections = {section: document.pop(section, {}) for section in SECTIONS}
    if document:
        raise ConfigError(
            f"recipe {name} has unknown keys: {_names(document)}; known are description, wants and the sections"
            f" {', '.join(SECTIONS)}"
        )
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise ConfigError(f"recipe {name}: {section} must be a section, [{section}]")
        if unknown := values.keys() - SECTIONS[section]:
            raise ConfigError(f"recipe {name}: [{section}] has unknown keys: {_names(unknown)}")
    for key, value in (texts | sections["published"]).items():
        if not isinstance(value, str):
            raise ConfigError(f"recipe {name}: {key} must be text, not {value!r}")
    for key, value in sections["target"].items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"recipe {name}: [target] {key} must be a finite number, not {value!r}")
    for section in ("model", "training"):
        values = sections[section]
        sections[section] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Recipe(name, **texts, **sections)


def _names(keys: Any) -> str:
    return ", ".join(map(repr, sorted(keys)))
