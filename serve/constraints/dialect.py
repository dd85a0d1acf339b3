"""The dialect: regular expressions of Python's `re`, without flags, that match a whole text.

Python's own parser reads them. What no automaton can do, or what would not fit its size, is refused by name.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from re import _constants, _parser  # type: ignore[attr-defined]  # no other parser reads exactly what `re` does
from typing import Any

from rill.serve.constraints.characters import Characters
from rill.serve.constraints.patterns import ConstraintError

MAX_LENGTH = 1 << 16  # characters of a pattern with all counts written out
MAX_DEPTH = 50  # groups inside one another

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


@dataclass(frozen=True)
class Language:
    """The texts that a regular expression matches, over the characters of a model: pieces of a regular expression, of
    which numbers are classes, as masks of characters. `size` counts classes, with all counts written out.
    """

    pieces: tuple[str | int, ...]
    size: int


class NoTextError(Exception):
    """No text of a model can match; `needs` are the characters that it lacks, any of which may help."""

    def __init__(self, needs: list[str]) -> None:
        super().__init__(needs)
        self.needs = needs


def read_regex(pattern: str, characters: Characters, part: str = "regex", depth: int = MAX_DEPTH) -> Language:
    """Read a regular expression. Raises ConstraintError for one that is not of the dialect, and NoTextError."""
    try:
        _check(pattern, depth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what may change in later Pythons
            tree = _parser.parse(pattern)
    except (re.error, OverflowError, ValueError) as error:
        raise ConstraintError(part, f"the {part} is not valid: {error}") from None
    except RecursionError:
        raise ConstraintError(part, f"the {part} has too many parts inside one another") from None
    except _RefusedError as refused:
        what, at = refused.args
        raise ConstraintError(part, f"the {part} has {what} at position {at}, which is not supported") from None
    return _Writer(characters, pattern, part).sequence(tree)


def read_choices(texts: Sequence[str], characters: Characters) -> Language:
    """Read texts, one of which is to be written. Raises NoTextError."""
    possible: list[list[int]] = []
    needs: list[str] = []
    for text in sorted(set(texts)):
        masks = [characters.between(ord(character), ord(character)) for character in text]
        if all(masks):
            possible.append(masks)
        else:
            needs.append(repr(next(character for character, mask in zip(text, masks, strict=True) if not mask)))
    if not possible:
        raise NoTextError(needs)
    pieces: list[str | int] = []
    for masks in possible:
        pieces += ["|" if pieces else "(?:", *masks]
    return Language((*pieces, ")"), sum(map(len, possible)))


class _RefusedError(Exception):
    """A part of a pattern is not in the dialect: what it is, and its position."""


def _check(pattern: str, most: int) -> None:
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
            if depth > most:
                raise _RefusedError(f"more than {most} groups inside one another", at)
            _check_group(pattern, at)
            at += 3 if pattern.startswith("(?", at) else 1
        elif character in "*+?{" and (count := _COUNT.match(pattern, at) or character):
            at += 1 if isinstance(count, str) else len(count[0])
            if pattern.startswith("+", at) and count != "{":
                raise _RefusedError("a possessive count", at - 1)
        else:
            if (character == "^" and at) or (character == "$" and at + 1 < len(pattern)):
                raise _RefusedError(f"the anchor {character}", at)
            depth -= character == ")"
            at += 1


def _check_escape(pattern: str, at: int) -> None:
    letter = pattern[at + 1 : at + 2]
    if letter in ("b", "B"):
        raise _RefusedError(f"the word boundary \\{letter}", at)
    if (letter == "A" and at) or (letter == "Z" and at + 2 < len(pattern)):
        raise _RefusedError(f"the anchor \\{letter}", at)
    if re.match(r"\\[1-9](?!(?<=[1-3])[0-7]{2})", pattern[at : at + 4]):
        raise _RefusedError("a reference to a group", at)


def _check_group(pattern: str, at: int) -> None:
    for beginning, what in _GROUPS:
        if pattern.startswith(beginning, at):
            raise _RefusedError(what, at)
    if re.match(r"\(\?[a-zA-Z-](?!<)", pattern[at : at + 4]):
        raise _RefusedError("flags", at)


def _end_of_class(pattern: str, at: int) -> int:
    at += 1
    at += pattern.startswith("^", at)
    at += pattern.startswith("]", at)  # a first ] stands for itself
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


class _Writer:
    """Writes the tree of Python's parser again, over the characters of a model."""

    def __init__(self, characters: Characters, pattern: str, part: str) -> None:
        self._characters, self._pattern, self._part = characters, pattern, part

    def sequence(self, tree: Any) -> Language:
        """Write the items of a tree one after the other; raises NoTextError if one of them has no text."""
        pieces: list[str | int] = []
        size = 0
        for code, argument in tree:
            item = self._item(code, argument)
            pieces += item.pieces
            size += item.size
        if size > MAX_LENGTH:
            raise ConstraintError(
                self._part, f"the {self._part} is longer than {MAX_LENGTH:,} characters with all counts written out"
            )
        return Language(tuple(pieces), size)

    def _item(self, code: Any, argument: Any) -> Language:  # noqa: PLR0911
        match code:
            case _constants.LITERAL:
                return self._class(self._characters.between(argument, argument), repr(chr(argument)))
            case _constants.NOT_LITERAL:
                mask = self._characters.all & ~self._characters.between(argument, argument)
                return self._class(mask, f"a character other than {chr(argument)!r}")
            case _constants.ANY:
                return self._class(self._characters.all & ~self._characters.between(10, 10), "a character (.)")
            case _constants.IN:
                return self._set(argument)
            case _constants.SUBPATTERN if not argument[1] and not argument[2]:
                return self.sequence(argument[3])
            case _constants.BRANCH:
                return self._branch(argument[1])
            case _constants.MAX_REPEAT | _constants.MIN_REPEAT:
                return self._repeat(*argument)
            case _constants.AT:  # at the very beginning or end: `_check`
                return Language((), 0)
            case _:
                raise ConstraintError(self._part, f"the {self._part} has a part that is not supported: {code}")

    def _class(self, mask: int, what: str) -> Language:
        if not mask:
            raise NoTextError([what])
        return Language((mask,), 1)

    def _set(self, items: Sequence[tuple[Any, Any]]) -> Language:
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
        what = ("a character other than " if negated else "one of " if len(names) > 1 else "") + ", ".join(names)
        return self._class(mask, what)

    def _branch(self, trees: Sequence[Any]) -> Language:
        pieces: list[str | int] = []
        size = 0
        needs: list[str] = []
        for tree in trees:
            try:
                language = self.sequence(tree)
            except NoTextError as error:
                needs += error.needs
            else:
                pieces += ["|" if pieces else "(?:", *language.pieces]
                size += language.size
        if not pieces:
            raise NoTextError(needs)
        return Language((*pieces, ")"), size)

    def _repeat(self, low: int, high: Any, tree: Any) -> Language:
        try:
            part = self.sequence(tree)
        except NoTextError:
            if low:
                raise
            return Language((), 0)
        if high == 0:
            return Language((), 0)
        endless = high is _constants.MAXREPEAT or high == _constants.MAXREPEAT
        size = part.size * (max(low, 1) if endless else high)
        if size > MAX_LENGTH or max(low, 0 if endless else high) > MAX_LENGTH:
            count = f"{{{low},}}" if endless else f"{{{low},{high}}}" if low != high else f"{{{low}}}"
            where = f" at position {at}" if (at := self._pattern.find(count)) >= 0 else ""
            raise ConstraintError(
                self._part,
                f"the count {count}{where} makes the {self._part} longer than {MAX_LENGTH:,} characters",
            )
        if not part.pieces:
            return part
        return Language(("(?:", *part.pieces, f"){{{low},{'' if endless else high}}}"), size)
