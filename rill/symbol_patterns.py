"""Patterns that cut text into symbols: a small part of regular expressions, which matches in bounded time.

A pattern is part of a model, and a model may come from anybody. So there is nothing in it that could search far or try
many ways: literals, `.`, classes such as `[^]a-z]`, the escapes `\\d \\w \\s` and their opposites (ASCII), groups,
alternatives, and counts `?`, `{m}`, `{m,n}`. `*`, `+`, anchors, references and assertions are refused. As in Python,
the first alternative that fits is taken, and counts take as many as they can.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_BYTES = 4096  # of a pattern in UTF-8
MAX_COUNT = 255  # of a repetition
MAX_LENGTH = 256  # code points of a match
MAX_WORK = 2_000  # steps of one match, at most: about 20 microseconds
MAX_DEPTH = 50  # of groups

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_SETS = "dDwWsS"
_RANGES = {"d": [(0x30, 0x39)], "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)], "s": [(9, 13), (32, 32)]}

Spelling = Callable[[int], str]  # of a code point, inside and outside of classes


class PatternError(ValueError):
    """A pattern has something that is not allowed; the message says where."""


@dataclass(frozen=True)
class _Part:
    """A part of a pattern as it is written in the end, with its bounds.

    `ways` is the number of ways in which it can match at one position, `work` the number of steps to try them all,
    `shortest` and `longest` are the lengths of its matches in code points.
    """

    regex: str
    ways: int = 1
    work: int = 1
    shortest: int = 1
    longest: int = 1


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile `pattern` so that it matches the next symbol. Raises PatternError."""
    return re.compile(translate(pattern), re.ASCII)


def translate(pattern: str, spell: Spelling | None = None) -> str:
    """Return `pattern`, checked, in the syntax of Python's `re` with re.ASCII. Raises PatternError.

    With `spell` it is for other engines that match by code points, take the first alternative that fits and as many as
    they can: it has nothing but what `spell` returns, classes of ranges, groups `(?:…)`, `|` and counts `{m,n}`.
    """
    if not pattern:
        raise PatternError("the pattern is empty")
    if len(pattern.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise PatternError(f"the pattern has more than {MAX_BYTES} bytes")
    part = _Parser(pattern, spell).parse()
    if not part.shortest:
        raise PatternError("the pattern matches the empty text, which is not a symbol")
    if part.longest > MAX_LENGTH:
        raise PatternError(f"the pattern matches up to {part.longest} characters; a symbol has at most {MAX_LENGTH}")
    return part.regex


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str, spell: Spelling | None) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0
        self._spell = spell

    def parse(self) -> _Part:
        part = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("')' without '('")
        return part

    def _error(self, what: str) -> PatternError:
        return PatternError(f"the pattern has {what} at position {self._at}")

    def _next(self) -> str:
        """The next character, or '' at the end."""
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._next()
        if not character:
            raise self._error("an unexpected end")
        self._at += 1
        return character

    def _alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._next() == "|":
            self._at += 1
            parts.append(self._sequence())
        if len(parts) == 1:
            return parts[0]
        return self._bounded(
            _Part(
                f"(?:{'|'.join(part.regex for part in parts)})",
                sum(part.ways for part in parts),
                sum(part.work for part in parts),
                min(part.shortest for part in parts),
                max(part.longest for part in parts),
            )
        )

    def _sequence(self) -> _Part:
        regex, ways, work, shortest, longest = "", 1, 0, 0, 0
        while self._next() and self._next() not in "|)":
            part = self._counted(self._atom())
            regex, work, ways = regex + part.regex, work + ways * part.work, ways * part.ways
            shortest, longest = shortest + part.shortest, longest + part.longest
            self._bounded(_Part(regex, ways, work, shortest, longest))
        return _Part(regex, ways, max(work, 1), shortest, longest)

    def _counted(self, part: _Part) -> _Part:
        """`part` with the count that follows it, if any."""
        match = re.compile(r"\?|\{(\d{1,3})(?:,(\d{1,3}))?\}").match(self._pattern, self._at)
        if not match:
            if (character := self._next()) in ("*", "+", "{"):
                raise self._error(f"{character!r}, which has no bound; write a count such as {{1,64}}")
            return part
        low, high = (0, 1) if match[0] == "?" else (int(match[1]), int(match[2] or match[1]))
        if not low <= high <= MAX_COUNT or not high:
            raise self._error(f"the count {match[0]}; counts rise from 0 to at most {MAX_COUNT}")
        self._at = match.end()
        if self._next() in ("?", "*", "+", "{"):
            raise self._error("a count after a count")
        if self._spell and low < high and not part.shortest:
            raise self._error("a count of what may be empty, which other engines read in another way,")
        powers, ways, work = 1, int(low == 0), 0
        for count in range(1, high + 1):
            work += powers * part.work
            powers *= part.ways
            ways += powers if count >= low else 0
            self._bounded(_Part("", ways, work))
        counts = f"{{{low},{high}}}"
        return self._bounded(
            _Part(f"(?:{part.regex}){counts}", ways, max(work, 1), low * part.shortest, high * part.longest)
        )

    def _bounded(self, part: _Part) -> _Part:
        if part.work > MAX_WORK or part.ways > MAX_WORK:
            raise self._error("too many ways to match up to here, which could take long")
        return part

    def _atom(self) -> _Part:
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return _Part(self._class())
            case ".":
                return _Part(f"[^{self._literal(chr(10))}]")
            case "\\":
                if self._next() and self._next() in _SETS:
                    return _Part(f"[{self._set(self._take())}]")
                return _Part(self._literal(self._escaped()))
            case "^" | "$" | "*" | "+" | "?" | "{" | "}":
                self._at -= 1
                raise self._error(f"{character!r}; write \\{character} for the character")
            case _:
                return _Part(self._literal(character))

    def _literal(self, character: str) -> str:
        return self._spell(ord(character)) if self._spell else re.escape(character)

    def _set(self, letter: str) -> str:
        """A set such as `\\d`, as a part of a class."""
        if self._spell is None:
            return "\\" + letter
        ranges = _RANGES[letter.lower()]
        if letter.isupper():
            edges = [0, *(edge for low, high in ranges for edge in (low - 1, high + 1)), 0x10FFFF]
            ranges = list(zip(edges[::2], edges[1::2], strict=True))
        return "".join(f"{self._spell(low)}-{self._spell(high)}" for low, high in ranges)

    def _group(self) -> _Part:
        if self._pattern.startswith("?:", self._at):
            self._at += 2
        elif self._next() == "?":
            raise self._error("a special group; only (…) and (?:…) are allowed")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error("too many groups inside one another")
        part = self._alternatives()
        self._depth -= 1
        if self._next() != ")":
            raise self._error("'(' without ')'")
        self._at += 1
        return part

    def _escaped(self) -> str:
        """The character of an escape, whose backslash has been read."""
        letter = self._take()
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if digits := _HEX_DIGITS.get(letter):
            code = self._pattern[self._at : self._at + digits]
            if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", code) or int(code, 16) > 0x10FFFF:
                raise self._error(f"\\{letter} without {digits} hexadecimal digits of a code point")
            self._at += digits
            return chr(int(code, 16))
        if letter.isalnum():
            self._at -= 1
            raise self._error(f"the escape \\{letter}, which is not allowed")
        return letter

    def _class(self) -> str:
        """A class, whose '[' has been read."""
        regex = "["
        if self._next() == "^":
            regex += self._take()
        items = ""
        while (character := self._take()) != "]" or not items:  # a first ] stands for itself
            if character == "\\" and self._next() and self._next() in _SETS:
                items += self._set(self._take())
                continue
            first = self._escaped() if character == "\\" else character
            items += self._literal(first)
            if self._next() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                character = self._take()
                if character == "\\" and self._next() and self._next() in _SETS:
                    raise self._error("a range to a set")
                last = self._escaped() if character == "\\" else character
                if last < first:
                    raise self._error(f"the range {first}-{last}, which is in the wrong order")
                items += "-" + self._literal(last)
        return regex + items + "]"
