"""The characters that the symbols of a model are made of, and sets of them as bit masks."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cache


class Characters:
    """The characters of a model, by ascending code point; bit i of a mask stands for the i-th one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._text = "".join(sorted(set().union(*texts)))
        self._codes = list(map(ord, self._text))
        self.all = (1 << len(self._text)) - 1

    def __len__(self) -> int:
        return len(self._text)

    def rank(self, character: str) -> int:
        """The place of a character that the model has."""
        return bisect_left(self._codes, ord(character))

    def between(self, low: int, high: int) -> int:
        """The mask of the characters from code point `low` to `high`."""
        return (1 << bisect_right(self._codes, high)) - (1 << bisect_left(self._codes, low))

    def members(self, mask: int) -> Iterator[str]:
        """The characters of a mask, by ascending code point."""
        while mask:
            low = mask & -mask
            yield self._text[low.bit_length() - 1]
            mask ^= low

    @cache  # noqa: B019  # lives as long as one compilation
    def matching(self, escape: str) -> int:
        r"""The mask of the characters that an escape of `re` matches, such as `\d`."""
        return sum(1 << self.rank(each) for each in re.findall(escape, self._text))
