"""Whether the lines of a text are sorted, so that its end differs from the rest."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

PLACES, SLICE = 16, 2**14  # characters, of all parts of the text
FEWEST = 100  # lines: fewer could be in order by chance
STEPS = 5  # neighbours that differ: fewer would not be an order
SORTED = 0.95  # of the neighbours that differ; a few lines, such as headings, may be elsewhere

_KEYS: tuple[Callable[[str], Any], ...] = (str, str.casefold, len)


def looks_sorted(text: str) -> bool:
    """Whether nearly all lines, of slices of `text`, rise or fall in alphabetical order, or in length."""
    lines: list[str] = []
    for place in range(PLACES):
        start = len(text) * place // PLACES
        part = text[start : start + min(SLICE, len(text) // PLACES)]
        lines += [line for line in part.split("\n")[1:-1] if line.strip()]  # without halves of lines
    return len(lines) >= FEWEST and any(_in_order([key(line) for line in lines]) for key in _KEYS)


def _in_order(keys: list[Any]) -> bool:
    rising = sum(bool(a < b) for a, b in pairwise(keys))
    falling = sum(bool(a > b) for a, b in pairwise(keys))
    return max(rising, falling) >= STEPS and max(rising, falling) >= SORTED * (rising + falling)
