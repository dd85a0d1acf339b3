"""The options of `rill train`, which the fields of the configurations declare as their metadata."""

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any

# The groups of options in --help, in their order.
GENERAL, DATA, MODEL, LENGTH = "options", "data", "model", "length of the run, one of"
TRAINING, EVALUATION = "training", "evaluation and samples"
GROUPS = (GENERAL, DATA, MODEL, LENGTH, TRAINING, EVALUATION)


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line, and which values it accepts.

    `kind` is the type of the value, or of each value where `several` may follow the flag. `requirement` completes the
    sentence "NAME must be …". `flag` is given where it is not `--name`.
    """

    group: str
    help: str
    kind: type
    metavar: str
    requirement: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    several: bool = False
    flag: str = ""


Metadata = Mapping[str, Option]


def option_of(declared: Field[Any]) -> Option | None:
    """The option that a field declares, if any."""
    return declared.metadata.get("option")


def flag_of(declared: Field[Any]) -> str:
    """The flag of a field's option: `--learning-rate`; `--no-bias` where the default is true."""
    option = option_of(declared)
    name = "no_" + declared.name if declared.default is True else declared.name
    return (option and option.flag) or "--" + name.replace("_", "-")


def whole(group: str, help: str, low: int = 0, high: int | None = None) -> Metadata:
    """A whole number from `low` to `high`."""
    limit = "" if high is None else f" and at most {high}"

    def accepts(value: Any) -> bool:  # bool is a subclass of int, but not a count
        return type(value) is int and value >= low and (high is None or value <= high)

    return {"option": Option(group, help, int, "N", f"a whole number of at least {low}{limit}", accepts)}


def number(
    group: str, help: str, metavar: str, low: float = 0.0, below: float = float("inf"), low_included: bool = True
) -> Metadata:
    """A number with low <= number < below, or low < number < below."""
    bound = "at least" if low_included else "more than"
    limit = "" if below == float("inf") else f" and less than {below:g}"

    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and (low < value < below or (low_included and value == low))

    return {"option": Option(group, help, float, metavar, f"a finite number, {bound} {low:g}{limit}", accepts)}


def one_of(group: str, help: str, *choices: str) -> Metadata:
    """One of `choices`."""
    requirement = f"{', '.join(choices[:-1])} or {choices[-1]}"
    metavar = f"{{{','.join(choices)}}}"
    return {"option": Option(group, help, str, metavar, requirement, lambda value: value in choices, choices)}


def truth(group: str, help: str) -> Metadata:
    """True or false: a flag without a value."""
    return {"option": Option(group, help, bool, "", "true or false", lambda value: isinstance(value, bool))}


def text(group: str, help: str, metavar: str, flag: str = "", form: str = "text", pattern: str = "(?s).*") -> Metadata:
    """A string that matches `pattern`, which `form` describes."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    return {"option": Option(group, help, str, metavar, form, accepts, flag=flag)}


def texts(group: str, help: str, metavar: str) -> Metadata:
    """A tuple of strings."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(isinstance(text, str) for text in value)

    return {"option": Option(group, help, str, metavar, "a list of strings", accepts, several=True)}
