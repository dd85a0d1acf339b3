"""The options of `rill train`: functions that make fields of a dataclass, each with its option as metadata."""

import codecs
import math
import re
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any

# The groups of options in --help, in their order.
GENERAL, DATA, MODEL, LENGTH = "options", "data", "model", "length of the run, one of"
TRAINING, EVALUATION = "training", "evaluation and samples"
ENCODINGS = ("utf-8", "cp1252", "latin-1", "utf-16-le", "gb18030", "shift_jis")  # examples of them
GROUPS = (GENERAL, DATA, MODEL, LENGTH, TRAINING, EVALUATION)


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line, and which values it accepts.

    `kind` is the type of the value, or of each value where `several` may follow the flag; `parse` makes values of each
    word that follows it, and with `adds` they join those of the same flag before. `requirement` completes the sentence
    "NAME must be …". `flag` is given where it is not `--name`.
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
    parse: Callable[[str], tuple[str, ...]] = lambda word: (word,)
    adds: bool = False


def option_of(declared: Field[Any]) -> Option | None:
    """The option that a field declares, if any."""
    return declared.metadata.get("option")


def flag_of(declared: Field[Any]) -> str:
    """The flag of a field's option: `--learning-rate`; `--no-bias` where the default is true."""
    option = option_of(declared)
    name = "no_" + declared.name if declared.default is True else declared.name
    return (option and option.flag) or "--" + name.replace("_", "-")


def words_of(declared: Field[Any], value: Any) -> list[str]:
    """The words of a command line that give a field's option this value; none for true and false by default."""
    flag = flag_of(declared)
    if isinstance(value, bool):
        return [] if value is declared.default else [flag]
    if isinstance(value, tuple):
        return [flag, *value]
    return [flag, str(value).removesuffix(".0")]


def whole(default: int | None, group: str, help: str, low: int = 0, high: int | None = None) -> Any:
    """A whole number from `low` to `high`."""
    limit = "" if high is None else f" and at most {high}"

    def accepts(value: Any) -> bool:  # bool is a subclass of int, but not a count
        return type(value) is int and value >= low and (high is None or value <= high)

    return _field(default, Option(group, help, int, "N", f"a whole number of at least {low}{limit}", accepts))


def number(
    default: float | None, group: str, help: str, metavar: str, below: float = math.inf, zero: bool = True
) -> Any:
    """A number from 0, which is included if `zero` is, to less than `below`."""
    bound = "at least" if zero else "more than"
    limit = "" if below == math.inf else f" and less than {below:g}"

    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and (0 < value < below or (zero and value == 0))

    return _field(default, Option(group, help, float, metavar, f"a finite number, {bound} 0{limit}", accepts))


def one_of(default: str, group: str, help: str, *choices: str) -> Any:
    """One of `choices`."""
    requirement = f"{', '.join(choices[:-1])} or {choices[-1]}"
    metavar = f"{{{','.join(choices)}}}"
    return _field(default, Option(group, help, str, metavar, requirement, lambda value: value in choices, choices))


def truth(default: bool, group: str, help: str) -> Any:
    """True or false: a flag without a value, which gives the opposite of the default."""
    return _field(default, Option(group, help, bool, "", "true or false", lambda value: isinstance(value, bool)))


def text(
    default: str,
    group: str,
    help: str,
    metavar: str,
    flag: str = "",
    form: str = "text",
    pattern: str = "(?s).*",
    choices: tuple[str, ...] = (),
) -> Any:
    """A string that matches `pattern`, which `form` describes; a mistyped one may be one of `choices`."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    return _field(default, Option(group, help, str, metavar, form, accepts, choices, flag=flag))


def texts(default: tuple[str, ...], group: str, help: str, metavar: str) -> Any:
    """A tuple of strings."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(isinstance(text, str) for text in value)

    return _field(default, Option(group, help, str, metavar, "a list of strings", accepts, several=True))


def suffixes(default: tuple[str, ...], group: str, help: str) -> Any:
    """A tuple of suffixes of file names, such as `.txt`; the command line also takes `txt`, `*.TXT` and `.txt,.md`."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(
            isinstance(each, str) and re.fullmatch(r"\.[^/,*]*[^/,*.]", each) and each == each.lower() for each in value
        )

    def parse(word: str) -> tuple[str, ...]:
        return tuple("." + part.strip().lstrip("*.").lower() for part in word.split(",") if part.strip())

    form = "suffixes of file names in small letters, such as .txt (all files: --corpus 'FOLDER/**')"
    return _field(default, Option(group, help, str, ".SUFFIX", form, accepts, several=True, parse=parse, adds=True))


def encodings(default: str, group: str, help: str) -> Any:
    """Names of text encodings that Python has, with commas between them."""

    def is_encoding(name: str) -> bool:
        try:
            information: Any = codecs.lookup(name)
        except (LookupError, ValueError):
            return False
        return bool(information._is_text_encoding)  # not rot13 and base64, which map text to text and bytes to bytes

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and all(map(is_encoding, value.split(",")))

    form = f"names of text encodings, such as {', '.join(ENCODINGS)}"
    return _field(default, Option(group, help, str, "NAME", form, accepts, choices=ENCODINGS))


def _field(default: object, option: Option) -> Any:
    return field(default=default, metadata={"option": option})
