"""The symbols of a model, in the order of their ids. Standard library only: the server imports this module too."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

UNKNOWN = "<unk>"
_SURROGATE = re.compile("[\ud800-\udfff]")


class UnknownCharacterError(ValueError):
    """A text has a character that is not in the vocabulary (for a tagger: a symbol); `position` is its index."""

    def __init__(self, character: str, position: int) -> None:
        super().__init__(character, position)  # what a copy, in another process too, is made of
        self.character = character
        self.position = position

    def __str__(self) -> str:
        single = len(self.character) == 1
        what = f"character {self.character!r} (U+{ord(self.character):04X})" if single else f"symbol {self.character!r}"
        return f"{what} at position {self.position} is not in the model's vocabulary"


@dataclass(frozen=True)
class Vocabulary:
    """A bijection between symbols and ids 0..V-1.

    `<unk>` stands for all symbols without an id of their own; a model reads it and never generates it. With
    `characters` every other symbol is one Unicode character; without, as in taggers, it may be longer. Raises
    ValueError for an empty vocabulary, a repeated or empty symbol, half a surrogate pair (no message and no file in
    UTF-8 can hold it), and with `characters` for a longer symbol.
    """

    symbols: tuple[str, ...]
    characters: bool = True

    def __post_init__(self) -> None:
        if not self.symbols:
            raise ValueError("a vocabulary needs at least one symbol")
        if len(self._ids) != len(self.symbols):
            raise ValueError("the vocabulary repeats a symbol")
        for symbol in self.symbols:
            if not symbol:
                raise ValueError("the vocabulary has an empty symbol")
            if self.characters and len(symbol) != 1 and symbol != UNKNOWN:
                raise ValueError(f"the vocabulary symbol {symbol!r} is not one character")
            if _SURROGATE.search(symbol):
                raise ValueError(f"the vocabulary symbol {symbol!r} has half a surrogate pair, which no text can hold")

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

    @property
    def unknown_id(self) -> int | None:
        """The id of `<unk>`, or None."""
        return self._ids.get(UNKNOWN)

    @property
    def unknown_character(self) -> str | None:
        """A character that is read as `<unk>`: U+FFFD, or the next one below without an id. None without `<unk>`."""
        if self.unknown_id is None:
            return None
        return next(character for character in map(chr, range(0xFFFD, 0xDFFF, -1)) if character not in self._ids)

    @property
    def start_id(self) -> int:
        """The id that a model reads when there is no prompt: that of "\\n", or 0 if the vocabulary has no "\\n"."""
        return self._ids.get("\n", 0)

    def encode(self, text: Iterable[str]) -> list[int]:
        """The ids of `text`, one per symbol; a str is read character by character.

        Raises UnknownCharacterError for a symbol without an id, unless there is `<unk>` to stand for it.
        """
        ids, unknown = self._ids, self.unknown_id
        if isinstance(text, str):
            try:
                return list(map(ids.__getitem__, text))  # several times faster than what follows
            except KeyError:
                pass
        encoded = []
        for position, symbol in enumerate(text):
            index = ids.get(symbol, unknown)
            if index is None:
                raise UnknownCharacterError(symbol, position)
            encoded.append(index)
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        return "".join(map(self.symbols.__getitem__, ids))
