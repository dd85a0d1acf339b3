"""The dialect: regular expressions of Python's `re`, without flags, that match a whole text.

Python's own parser reads them. What no automaton can do, or what would not fit its size, is refused by name.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from re import _constants, _parser  # type: ignore[attr-defined]  # no other parser reads exactly what `re` does
from typing import Any

from rill.serve.constraints.characters import Characters
from rill.serve.constraints.language import (
    EMPTY,
    MAX_LENGTH,
    Language,
    SizeError,
    either,
    one_of,
    repeat,
    sequence,
)
from rill.serve.constraints.patterns import ConstraintError

MAX_DEPTH = 50  # groups inside one another

_SHOWN = 8  # characters of a class, in a message
_COUNT = re.compile(r"\{\d*(?:,\d*)?\}")
_GROUPS = (
    ("(?=", "a look-ahead"),
    ("(?!", "a look-ahead"),
    ("(?<=", "a look-behind"),
    ("(?<!", "a look-behind"),
    ("(?P=", "a reference to a group"),
    ("(?(", "a condition on a group"),
    ("(?>", "an atomic group"),
)
_CATEGORIES = {
    _constants.CATEGORY_DIGIT: r"\d",
    _constants.CATEGORY_NOT_DIGIT: r"\D",
    _constants.CATEGORY_SPACE: r"\s",
    _constants.CATEGORY_NOT_SPACE: r"\S",
    _constants.CATEGORY_WORD: r"\w",
    _constants.CATEGORY_NOT_WORD: r"\W",
}


class DialectError(Exception):
    """A regular expression is not valid, or not of the dialect; the message follows its name."""


def read_regex(pattern: str, characters: Characters) -> Language:
    """Read a regular expression. Raises DialectError."""
    try:
        _check(pattern)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what may change in later Pythons
            return _Reader(characters, pattern).sequence(_parser.parse(pattern))
    except re.error as error:
        raise DialectError(f"cannot be used: {error}") from None
    except (OverflowError, ValueError):
        raise DialectError("cannot be used: the repetition number is too large") from None
    except RecursionError:
        raise DialectError("has too many parts inside one another") from None
    except SizeError as error:
        raise DialectError(str(error)) from None


def read_choices(texts: Iterable[str], characters: Characters) -> Language:
    """Read texts, one of which is to be written. Raises ConstraintError."""
    try:
        return either(literal(text, characters) for text in sorted(set(texts)))
    except SizeError:
        raise ConstraintError("choices", f"the choices have more than {MAX_LENGTH:,} characters") from None


def literal(text: str, characters: Characters) -> Language:
    """Return the language of one text."""
    return sequence(one_of(characters.between(ord(each), ord(each)), repr(each)) for each in text)


def _refused(what: str, at: int) -> DialectError:
    return DialectError(f"has {what} at position {at}, which is not supported")


def _check(pattern: str) -> None:
    """Find what is refused, from left to right; whether the rest is valid is for the parser to say."""
    at, depth = 0, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            _check_escape(pattern, at)
            at += 2
        elif character == "[":
            at = _end_of_class(pattern, at)
        elif pattern.startswith("(?#", at):
            at = pattern.find(")", at) % (len(pattern) + 1) + 1
        elif character == "(":
            depth += 1
            if depth > MAX_DEPTH:
                raise _refused(f"more than {MAX_DEPTH} groups inside one another", at)
            _check_group(pattern, at)
            at += 3 if pattern.startswith("(?", at) else 1
        elif character in "*+?{" and (count := _COUNT.match(pattern, at) or character):
            at += 1 if isinstance(count, str) else len(count[0])
            if pattern.startswith("+", at) and count != "{":
                raise _refused("a possessive count", at - 1)
        else:
            if (character == "^" and at) or (character == "$" and at + 1 < len(pattern)):
                raise _refused(f"the anchor {character}", at)
            depth -= character == ")"
            at += 1


def _check_escape(pattern: str, at: int) -> None:
    letter = pattern[at + 1 : at + 2]
    if letter in ("b", "B"):
        raise _refused(f"the word boundary \\{letter}", at)
    if (letter == "A" and at) or (letter == "Z" and at + 2 < len(pattern)):
        raise _refused(f"the anchor \\{letter}", at)
    if re.match(r"\\[1-9](?!(?<=[1-3])[0-7]{2})", pattern[at : at + 4]):
        raise _refused("a reference to a group", at)


def _check_group(pattern: str, at: int) -> None:
    for beginning, what in _GROUPS:
        if pattern.startswith(beginning, at):
            raise _refused(what, at)
    if re.match(r"\(\?[a-zA-Z-](?!<)", pattern[at : at + 4]):
        raise _refused("flags", at)


def _end_of_class(pattern: str, at: int) -> int:
    at += 1
    at += pattern.startswith("^", at)
    at += pattern.startswith("]", at)  # a first ] stands for itself
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


class _Reader:
    """Reads the tree of Python's parser."""

    def __init__(self, characters: Characters, pattern: str) -> None:
        self._characters, self._pattern = characters, pattern

    def sequence(self, tree: Any) -> Language:
        return sequence(self._item(code, argument) for code, argument in tree)

    def _item(self, code: Any, argument: Any) -> Language:  # noqa: PLR0911
        characters = self._characters
        match code:
            case _constants.LITERAL:
                return one_of(characters.between(argument, argument), repr(chr(argument)))
            case _constants.NOT_LITERAL:
                return one_of(
                    characters.all & ~characters.between(argument, argument),
                    f"a character other than {chr(argument)!r}",
                )
            case _constants.ANY:
                return one_of(characters.all & ~characters.between(10, 10), "a character (.)")
            case _constants.IN:
                return self._class(argument)
            case _constants.SUBPATTERN if not argument[1] and not argument[2]:
                return self.sequence(argument[3])
            case _constants.BRANCH:
                return either(map(self.sequence, argument[1]))
            case _constants.MAX_REPEAT | _constants.MIN_REPEAT:
                return self._repeat(*argument)
            case _constants.AT:  # at the very beginning or end: `_check`
                return EMPTY
            case _:
                raise re.error(f"{str(code).lower()} is not supported")

    def _class(self, items: Sequence[tuple[Any, Any]]) -> Language:
        mask, negated = 0, False
        names = []
        for code, argument in items:
            match code:
                case _constants.NEGATE:
                    negated = True
                case _constants.LITERAL:
                    mask |= self._characters.between(argument, argument)
                    names.append(repr(chr(argument)))
                case _constants.RANGE:
                    mask |= self._characters.between(*argument)
                    names.append(f"{chr(argument[0])!r} to {chr(argument[1])!r}")
                case _:
                    mask |= self._characters.matching(_CATEGORIES[argument])
                    names.append(_CATEGORIES[argument])
        if negated:
            mask = self._characters.all & ~mask
        listed = ", ".join(names[:_SHOWN]) + ("…" if len(names) > _SHOWN else "")
        what = ("a character other than " if negated else "one of " if len(names) > 1 else "") + listed
        return one_of(mask, what)

    def _repeat(self, low: int, high: int, tree: Any) -> Language:
        most = None if high == _constants.MAXREPEAT else high
        part = self.sequence(tree)
        try:
            return repeat(part, low, most)
        except SizeError as error:
            count = f"{{{low},}}" if most is None else f"{{{low}}}" if low == most else f"{{{low},{most}}}"
            at = self._pattern.rfind(count)
            where = f" at position {at}" if at >= 0 else ""
            raise DialectError(f"{error}: look at {count}{where}") from None
