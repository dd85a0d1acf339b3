"""The errors that a user of `rill train` can fix; the command prints each as one line.

TrainError(ValueError)
├── ConfigError    an option, a recipe or config.json asks for something impossible
├── CorpusError    the text cannot be read or is too small
├── RunError       a run folder is missing, damaged or in the way
└── DivergedError  the loss, its gradient or a weight is no longer a finite number
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TrainError(ValueError):
    """An error whose message says what is wrong, where, and what to do."""


class ConfigError(TrainError):
    """An option, a recipe or a config.json asks for something impossible."""


class CorpusError(TrainError):
    """The text cannot be read, or there is too little of it."""


class RunError(TrainError):
    """A run folder is missing, damaged or in the way."""


class DivergedError(TrainError):
    """The loss, its gradient or a weight is no longer a finite number."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of an error message about a mistyped `word`: the most similar of the `known` words; empty if none is."""
    if not isinstance(word, str):
        return ""
    by_lower_case = {name.lower(): name for name in known}
    similar = get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean {by_lower_case[similar[0]]}?" if similar else ""
