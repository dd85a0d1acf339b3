"""Cutting whole corpora into symbols: what Vocabulary.cut does, in less time, and before there is a vocabulary."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rill.symbol_patterns import compile_pattern
from rill.train.errors import CorpusError
from rill.vocabulary import CHARACTERS, LONGEST, MAX_SYMBOL, REGEX, Vocabulary

PIECE = 2**20  # characters that are cut at a time
UNSEEN = -1  # in place of the id of a symbol that a vocabulary lacks
LINE_END = -2  # in place of the id of a newline that ends a line

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class CutText:
    """A text as numbers (N,) int32, of which number i stands for `symbols[i]`; all symbols together are the text.

    With `lines`, each line, which ends with a newline, is cut by itself, and its newline is a symbol. Of a code point
    that fits no symbol, `fits` is false.
    """

    text: str
    numbers: Numbers
    symbols: tuple[str, ...]
    tokenizer: str
    lines: bool
    fits: Callable[[str], bool]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each symbol occurs, without the newlines of `lines`."""
        counts = np.bincount(self.numbers, minlength=len(self.symbols)).tolist()
        found = dict(zip(self.symbols, counts, strict=True))
        if self.lines:
            found.pop("\n", None)
        return found

    def position_of(self, index: int) -> int:
        """The position in the text of the symbol at this index of `numbers`."""
        lengths = np.array([len(symbol) for symbol in self.symbols])
        return int(lengths[self.numbers[:index]].sum())

    def first(self, wanted: Callable[[str], bool]) -> int | None:
        """The index of the first `wanted` symbol."""
        are_wanted = np.array([wanted(symbol) for symbol in self.symbols] or [False])
        return int(are_wanted[self.numbers].argmax()) if are_wanted.any() else None

    def encode(self, vocabulary: Vocabulary) -> Numbers:
        """The ids (N,) of the text, as Vocabulary.cut has them, with UNSEEN where it raises UnknownCharacterError."""
        unknown = UNSEEN if vocabulary.unknown_id is None else vocabulary.unknown_id
        again = False  # whether a longer symbol is not in the vocabulary, so that its parts are
        table = np.empty(max(len(self.symbols), 1), np.int32)
        for number, symbol in enumerate(self.symbols):
            index = None if symbol in vocabulary.special_symbols else vocabulary.id_of(symbol)
            if self.lines and symbol == "\n":
                table[number] = LINE_END
            elif index is None and len(symbol) > 1:
                table[number], again = UNSEEN, True
            else:
                table[number] = unknown if index is None else index
        ids = table[self.numbers]
        return self._cut_again(ids, vocabulary) if again and unknown != UNSEEN else ids

    def _cut_again(self, ids: Numbers, vocabulary: Vocabulary) -> Numbers:
        """`ids`, but with the lines that have an UNSEEN symbol cut by `vocabulary`; without `lines`, all of them."""
        if not self.lines:
            return np.array(vocabulary.cut(self.text)[0], np.int32)
        ends = np.flatnonzero(ids == LINE_END)
        begins = np.concatenate([[0], ends[:-1] + 1])
        lengths = np.array([len(symbol) for symbol in self.symbols])
        places = np.concatenate([[0], np.cumsum(lengths[self.numbers])])  # of each symbol in the text
        pieces, done = [], 0
        for line in np.unique(np.searchsorted(ends, np.flatnonzero(ids == UNSEEN))).tolist():
            begin, end = int(begins[line]), int(ends[line])
            pieces.append(ids[done:begin])
            pieces.append(np.array(vocabulary.cut(self.text[places[begin] : places[end]])[0], np.int32))
            done = end
        return np.concatenate([*pieces, ids[done:]])


def cut_text(text: str, tokenizer: str, symbols: tuple[str, ...] = (), lines: bool = False) -> CutText:
    """Cut `text` by a tokenizer of rill.vocabulary; LONGEST needs the `symbols`.

    With `lines`, each line, which ends with a newline, is cut by itself.
    """
    if tokenizer == CHARACTERS:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found = np.flatnonzero(np.bincount(codes)) if len(codes) else codes
        ranks = np.zeros(int(codes.max(initial=0)) + 1, np.int32)
        ranks[found] = np.arange(len(found))
        return CutText(text, ranks[codes], tuple(map(chr, found.tolist())), tokenizer, lines, lambda symbol: True)
    one = compile_pattern(tokenizer.removeprefix(REGEX)) if tokenizer != LONGEST else None
    pattern = _longest(symbols) if one is None else re.compile(f"(?:{one.pattern})|.", re.ASCII | re.DOTALL)
    known = set(symbols)
    numbering = _Numbering()
    pieces = [
        np.fromiter(map(numbering.__getitem__, found), np.int32, len(found))
        for found in (_by_line if lines else _in_pieces)(text, pattern)
    ]

    def fits(symbol: str) -> bool:
        return len(symbol) > 1 or (symbol in known if one is None else one.fullmatch(symbol) is not None)

    numbers = np.concatenate([np.empty(0, np.int32), *pieces])
    return CutText(text, numbers, tuple(numbering), tokenizer, lines, fits)


class _Numbering(dict[str, int]):
    """The numbers of symbols, in the order in which they are asked for first."""

    def __missing__(self, symbol: str) -> int:
        self[symbol] = number = len(self)
        return number


def _longest(symbols: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for the longest of the symbols that fits, or one code point."""
    endings: dict[str, list[str]] = {}
    for symbol in symbols:
        if len(symbol) > 1:
            endings.setdefault(symbol[0], []).append(symbol[1:])
    longer = [
        re.escape(first) + f"(?:{'|'.join(map(re.escape, sorted(rest, key=len, reverse=True)))})"
        for first, rest in endings.items()
    ]
    return re.compile("|".join([*longer, "."]), re.DOTALL)


def _in_pieces(text: str, pattern: re.Pattern[str]) -> Iterator[list[str]]:
    """The symbols of `text`, a piece at a time; what follows a piece cannot change its symbols."""
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        found = pattern.findall(text, begin, end)
        begin = end
        if end < len(text):
            begin = end = min(end, len(text))
            while end - begin < MAX_SYMBOL and len(found) > 1:
                begin -= len(found.pop())
        yield found


def _by_line(text: str, pattern: re.Pattern[str]) -> Iterator[list[str]]:
    """The same, each line by itself."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + PIECE) + 1 or len(text)
        found = pattern.findall(text, begin, end)
        if any("\n" in symbol and len(symbol) > 1 for symbol in set(found)):  # a symbol of two lines
            lines = text[begin:end].split("\n")[:-1]
            found = list(chain.from_iterable([*pattern.findall(line), "\n"] for line in lines))
        yield found
        begin = end


def require_known(cut: CutText, vocabulary: Vocabulary, ids: Numbers, where: Callable[[str, int], str]) -> None:
    """Raise CorpusError for the first symbol of the text that `ids` have as UNSEEN; `where` says where that is."""
    unseen = np.flatnonzero(ids == UNSEEN)
    if not len(unseen):
        return
    first, others = cut.symbols[cut.numbers[unseen[0]]], len(np.unique(cut.numbers[unseen])) - 1
    more = f" ({others:,} other symbols of the text are not, either)" if others else ""
    place = where(cut.text, cut.position_of(int(unseen[0])))
    raise CorpusError(f"{place}: {first!r} is not in the model's vocabulary{more}")
