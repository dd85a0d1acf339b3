"""The symbols of a model, and how text becomes symbols. Standard library only: the server imports this module too."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Self

from rill.symbol_patterns import PatternError, compile_pattern

UNKNOWN = "<unk>"
CHARACTERS = "characters"  # each code point is a symbol
LONGEST = "longest"  # at each position the longest symbol that fits
REGEX = "regex:"  # and a pattern (`rill.symbol_patterns`), which matches the next symbol
SEQUENCES = "sequences"  # of symbols are read, not text: taggers
MAX_SYMBOL = 256  # code points, where text is cut
MAX_CUT_SYMBOLS = 1_000_000  # of a vocabulary by which text is cut into longer symbols: fewer than code points

_SURROGATE = re.compile("[\ud800-\udfff]")


class UnknownCharacterError(ValueError):
    """A text has a character that is not in the vocabulary, or (`cut`) that begins no symbol of it; for a tagger, a
    sequence has an unknown symbol. `position` is its index.
    """

    def __init__(self, character: str, position: int, cut: bool = False) -> None:
        super().__init__(character, position, cut)  # what a copy, in another process too, is made of
        self.character = character
        self.position = position
        self.cut = cut

    def __str__(self) -> str:
        single = len(self.character) == 1
        what = f"character {self.character!r} (U+{ord(self.character):04X})" if single else f"symbol {self.character!r}"
        if self.cut:
            return f"{what} at position {self.position} does not begin a symbol of the model's vocabulary"
        return f"{what} at position {self.position} is not in the model's vocabulary"


@dataclass(frozen=True)
class Vocabulary:
    """A bijection between symbols and ids 0..V-1, and the way from text to symbols.

    `<unk>` stands for all symbols without an id of their own; a model reads it and never generates it. `start` is the
    symbol that a model reads before every new text ("": none), and one of `ends` ends a text. These three never come
    from cutting text. `tokenizer` says how text is cut: CHARACTERS, LONGEST, or REGEX and a pattern. SEQUENCES are
    given, not cut.

    Raises ValueError for an empty vocabulary, a repeated or empty symbol, half a surrogate pair (no message and no file
    in UTF-8 can hold it), a symbol longer than a character with CHARACTERS (but the special ones), an unknown tokenizer
    or a pattern that is not allowed, and a start or end symbol that is not in the vocabulary.
    """

    symbols: tuple[str, ...]
    tokenizer: str = CHARACTERS
    start: str = ""
    ends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.symbols:
            raise ValueError("a vocabulary needs at least one symbol")
        if len(self._ids) != len(self.symbols):
            raise ValueError("the vocabulary repeats a symbol")
        self._check_special_symbols()
        cuts = self.tokenizer not in (CHARACTERS, SEQUENCES)
        for symbol in self.symbols:
            if not symbol:
                raise ValueError("the vocabulary has an empty symbol")
            if self.tokenizer == CHARACTERS and len(symbol) != 1 and symbol not in self.special_symbols:
                raise ValueError(f"the vocabulary symbol {symbol!r} is not one character")
            if cuts and len(symbol) > MAX_SYMBOL:
                raise ValueError(f"the vocabulary symbol {symbol[:20]!r}… has more than {MAX_SYMBOL} characters")
            if _SURROGATE.search(symbol):
                raise ValueError(f"the vocabulary symbol {symbol!r} has half a surrogate pair, which no text can hold")
        if cuts and len(self.symbols) > MAX_CUT_SYMBOLS:
            raise ValueError(f"a vocabulary by which text is cut has at most {MAX_CUT_SYMBOLS:,} symbols")
        if self.tokenizer.startswith(REGEX):
            try:
                self._pattern  # noqa: B018  # compiles it
            except PatternError as error:
                raise ValueError(f"the tokenizer's pattern cannot be used: {error}") from None
        elif self.tokenizer not in (CHARACTERS, LONGEST, SEQUENCES):
            raise ValueError(
                f"tokenizer {self.tokenizer[:80]!r} is not {CHARACTERS!r}, {LONGEST!r} or '{REGEX}' and a pattern"
            )

    def _check_special_symbols(self) -> None:
        if len(set(self.ends)) != len(self.ends):
            raise ValueError("the end symbols repeat a symbol")
        for what, symbol in [("start", self.start)] * bool(self.start) + [("end", end) for end in self.ends]:
            if symbol not in self._ids:
                raise ValueError(f"the {what} symbol {symbol!r} is not in the vocabulary")
            if symbol == UNKNOWN:
                raise ValueError(f"{UNKNOWN} cannot be the {what} symbol")
        special = {*self.never_ids, *self.end_ids}
        if (self.start or self.ends) and len(special) == len(self.symbols):
            raise ValueError("a vocabulary needs at least one symbol that a text can have")

    @classmethod
    def of_text(cls, text: str, min_count: int = 1) -> "Vocabulary":
        """The sorted characters of `text`; rarer ones than `min_count` become `<unk>`, the first symbol."""
        if min_count <= 1:
            return cls(tuple(sorted(set(text))))  # ten times as fast as counting
        counts = Counter(text)
        kept = sorted(character for character, count in counts.items() if count >= min_count)
        return cls((UNKNOWN, *kept))

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols)}

    def id_of(self, symbol: str) -> int | None:
        """The id of `symbol`, or None."""
        return self._ids.get(symbol)

    @cached_property
    def special_symbols(self) -> frozenset[str]:
        """`<unk>`, the start symbol and the end symbols, whether or not the vocabulary has them: no text has them."""
        return frozenset({UNKNOWN, *self.ends, *([self.start] if self.start else [])})

    @cached_property
    def text_symbols(self) -> tuple[str, ...]:
        """The symbols that text is cut into, in the order of their ids."""
        return tuple(self._text_ids)

    @property
    def unknown_id(self) -> int | None:
        """The id of `<unk>`, or None."""
        return self._ids.get(UNKNOWN)

    @cached_property
    def never_ids(self) -> tuple[int, ...]:
        """The ids, in order, that are never generated: `<unk>`, and the start symbol unless it is an end symbol too."""
        start = self._ids[self.start] if self.start and self.start not in self.ends else None
        return tuple(sorted({each for each in (self.unknown_id, start) if each is not None}))

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the end symbols, in their order."""
        return tuple(self._ids[end] for end in self.ends)

    @property
    def are_characters(self) -> bool:
        """Whether each symbol of a text is one code point."""
        return self.tokenizer == CHARACTERS

    @cached_property
    def unknown_character(self) -> str | None:
        """A character that is read as `<unk>`: U+FFFD, or the next one below that no symbol has. None without `<unk>`.

        With a REGEX tokenizer a pattern may join it with what is around it.
        """
        if self.unknown_id is None:
            return None
        used = set("".join(self.symbols))
        return next(character for character in map(chr, range(0xFFFD, 0xDFFF, -1)) if character not in used)

    @property
    def start_id(self) -> int:
        """The id that a model reads first, without a prompt: the start symbol's, else that of "\\n", else 0."""
        return self._ids[self.start] if self.start else self._ids.get("\n", 0)

    def begin(self, prompt: Sequence[int]) -> list[int]:
        """Return what a model reads for a new text with the ids of a `prompt`: the start symbol, if any, and these.

        Without both, the id of "\\n", or 0. A start symbol that the prompt begins with is not repeated.
        """
        if self.start and not (prompt and prompt[0] == self.start_id):
            return [self.start_id, *prompt]
        return list(prompt) or [self.start_id]

    def encode(self, text: Iterable[str]) -> list[int]:
        """The ids of `text`: a str is cut into symbols (SEQUENCES: into characters), anything else is symbols.

        Raises UnknownCharacterError for what has no id, unless there is `<unk>` to stand for it.
        """
        if isinstance(text, str) and self.tokenizer != SEQUENCES:
            return self.cut(text)[0]
        ids, unknown = self._ids, self.unknown_id
        encoded = []
        for position, symbol in enumerate(text):
            index = ids.get(symbol, unknown)
            if index is None:
                raise UnknownCharacterError(symbol, position)
            encoded.append(index)
        return encoded

    def cut(self, text: str, begin: int = 0, most: int | None = None) -> tuple[list[int], int]:
        """Cut `text` from code point `begin` on into at most `most` symbols: their ids, and where the next one begins.

        A code point that fits no symbol is one `<unk>`. The time is linear in the length. Raises UnknownCharacterError,
        with the position in `text`, if there is no `<unk>`.
        """
        most = len(text) - begin if most is None else most
        if self.tokenizer == LONGEST:
            return self._cut_longest(text, begin, most)
        if self.tokenizer.startswith(REGEX):
            return self._cut_by_pattern(text, begin, most)
        part, ids, unknown = text[begin : begin + most], self._text_ids, self.unknown_id
        try:
            return list(map(ids.__getitem__, part)), begin + len(part)  # several times faster than what follows
        except KeyError:
            pass
        if unknown is None:
            position = next(at for at, character in enumerate(part) if character not in ids)
            raise UnknownCharacterError(part[position], begin + position)
        return [ids.get(character, unknown) for character in part], begin + len(part)

    def _cut_longest(self, text: str, begin: int, most: int) -> tuple[list[int], int]:
        ids, lengths, unknown = self._text_ids, self._lengths, self.unknown_id
        cut: list[int] = []
        at, end = begin, len(text)
        while at < end and len(cut) < most:
            symbol = text[at]
            index = None
            for length in lengths.get(symbol, ()):
                index = ids.get(text[at : at + length])
                if index is not None:
                    symbol = self.symbols[index]
                    break
            if index is None:
                index = ids.get(symbol, unknown)
                if index is None:
                    raise UnknownCharacterError(symbol, at, cut=True)
            cut.append(index)
            at += len(symbol)
        return cut, at

    def _cut_by_pattern(self, text: str, begin: int, most: int) -> tuple[list[int], int]:
        ids, unknown = self._text_ids, self.unknown_id
        cut: list[int] = []
        at, end = begin, len(text)
        while at < end and len(cut) < most:
            for match in islice(self._pattern.finditer(text, at), most - len(cut)):
                symbol = match.group()
                index = ids.get(symbol)
                if index is None:
                    if unknown is None:
                        raise UnknownCharacterError(text[at], at, cut=True)
                    cut.append(unknown)
                    at += 1
                    if len(symbol) > 1:
                        break  # cut again behind this code point
                else:
                    cut.append(index)
                    at += len(symbol)
        return cut, at

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        """The ids of the symbols that text is cut into."""
        return {symbol: index for symbol, index in self._ids.items() if symbol not in self.special_symbols}

    @cached_property
    def _lengths(self) -> dict[str, tuple[int, ...]]:
        """The lengths of symbols of several characters, the longest first, by their first character."""
        lengths: dict[str, set[int]] = {}
        for symbol in self._text_ids:
            if len(symbol) > 1:
                lengths.setdefault(symbol[0], set()).add(len(symbol))
        return {first: tuple(sorted(found, reverse=True)) for first, found in lengths.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches the next symbol, or one code point."""
        symbol = compile_pattern(self.tokenizer.removeprefix(REGEX))
        return re.compile(f"(?:{symbol.pattern})|.", re.ASCII | re.DOTALL)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; start and end symbols have none."""
        return "".join(map(self._texts.__getitem__, ids))

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """What each symbol is in a text."""
        hidden = {self.start, *self.ends}
        return tuple("" if symbol in hidden else symbol for symbol in self.symbols)

    def to_json(self) -> dict[str, Any]:
        """The entries of a vocabulary in config.json and manifest.json; those after the first only if not the default.

        That a vocabulary is of SEQUENCES is not among them: the model's task says so.
        """
        entries: dict[str, Any] = {"vocabulary": list(self.symbols)}
        if self.tokenizer not in (CHARACTERS, SEQUENCES):
            entries["tokenizer"] = self.tokenizer
        if self.start:
            entries["start_symbol"] = self.start
        if self.ends:
            entries["end_symbols"] = list(self.ends)
        return entries

    @classmethod
    def from_json(cls, document: Mapping[str, Any], sequences: bool = False) -> Self:
        """Make a vocabulary of the entries of `to_json`. Raises KeyError without symbols, ValueError for bad values."""
        tokenizer, start = document.get("tokenizer", CHARACTERS), document.get("start_symbol", "")
        for key, value in (("tokenizer", tokenizer), ("start_symbol", start)):
            if not isinstance(value, str):
                raise ValueError(f"{key!r} must be a string")
        if sequences and document.keys() & {"tokenizer", "start_symbol", "end_symbols"}:
            raise ValueError("a tagger reads sequences of symbols: it has no tokenizer, start or end symbols")
        symbols, ends = _strings(document, "vocabulary"), _strings(document, "end_symbols")
        return cls(symbols, SEQUENCES if sequences else tokenizer, start, ends)


def _strings(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = document[key] if key == "vocabulary" else document.get(key, [])
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        raise ValueError(f"{key!r} must be a list of strings")
    return tuple(values)
