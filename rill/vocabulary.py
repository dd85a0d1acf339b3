"""The symbols of a model, in id order. Standard library only: the server reads this module too."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

UNKNOWN = "<unk>"


class UnknownCharacterError(ValueError):
    """A text holds a character (a tagger's input: a symbol) that the vocabulary lacks; `position` is its index."""

    def __init__(self, character: str, position: int) -> None:
        single = len(character) == 1
        what = f"character {character!r} (U+{ord(character):04X})" if single else f"symbol {character!r}"
        super().__init__(f"{what} at position {position} is not in the model's vocabulary")
        self.character = character
        self.position = position


@dataclass(frozen=True)
class Vocabulary:
    """A bijection between symbols and ids 0..V-1.

    `<unk>` stands for all symbols without an id of their own; it is read, never produced. With `characters` every other
    symbol is one Unicode character; without, as in taggers, it may be longer. Raises ValueError for a repeated symbol,
    an empty one, and with `characters` a longer one.
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

    @classmethod
    def of_text(cls, text: str, min_count: int = 1) -> "Vocabulary":
        """The sorted characters of `text`; those seen fewer than `min_count` times become `<unk>`, the first symbol."""
        counts = Counter(text)
        kept = sorted(character for character, count in counts.items() if count >= min_count)
        return cls((UNKNOWN, *kept) if min_count > 1 else tuple(kept))

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
    def start_id(self) -> int:
        """What a model reads when there is no prompt: "\\n", or id 0 if the vocabulary has none."""
        return self._ids.get("\n", 0)

    def encode(self, text: Iterable[str]) -> list[int]:
        """The ids of `text`, one per symbol; a str is read character by character.

        Raises UnknownCharacterError, unless there is `<unk>` to stand in.
        """
        ids, unknown = self._ids, self.unknown_id
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
