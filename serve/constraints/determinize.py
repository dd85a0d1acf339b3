"""The automaton of a language over the symbols of a model. outlines-core makes it deterministic."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import outlines_core
from numpy.typing import NDArray

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.constraints.characters import Characters
from rill.serve.constraints.language import Language
from rill.serve.constraints.minimal import NONE, Table, minimize

_BEGIN, _END = "\0", "\1"  # around each text: see `_regex`
_FIRST = 2


def build_automaton(
    language: Language, characters: Characters, texts: Sequence[str], terminators: Sequence[int]
) -> Automaton | None:
    """Build the automaton of a language; None if no text of these symbols is in it.

    `texts` has what each symbol is in a text; "" if none has it. `terminators` are the ids of symbols that end a text.
    """
    letters = _Letters(language, characters)
    columns: dict[str, list[int]] = {}  # the ids of the symbols that the language does not tell apart
    for index, text in enumerate(texts):
        if text and (spelling := letters.spell(text)) is not None:
            columns.setdefault(spelling, []).append(index)
    table, accepting, start = _deterministic(_regex(language, letters), list(columns), letters.used)
    table, accepting = minimize(table, accepting, start)
    if not len(table):
        return None
    transitions = np.full((len(table), len(texts)), FORBIDDEN, np.int32)
    for column, ids in enumerate(columns.values()):
        transitions[:, ids] = table[:, column, None]
    goes_on = (transitions != FORBIDDEN).any(axis=1)
    for each in terminators:
        may_end = accepting & goes_on & (transitions[:, each] == FORBIDDEN)
        transitions[may_end, each] = len(transitions)
    return Automaton(transitions, accepting)


class _Letters:
    """A letter for all characters that a language does not tell apart, so that a large vocabulary has a few symbols."""

    def __init__(self, language: Language, characters: Characters) -> None:
        masks = {piece for piece in language.pieces if isinstance(piece, int)}
        self._of_mask: dict[int, str] = {}
        self._of_rank: list[int] = [NONE] * len(characters)
        self._characters = characters
        blocks = _blocks(masks)
        for number, block in enumerate(blocks):
            for rank in _ranks(block):
                self._of_rank[rank] = number
        self.used = [_letter(number) for number in range(len(blocks))]
        for mask in masks:
            numbers = [number for number, block in enumerate(blocks) if block & mask]
            self._of_mask[mask] = _class(numbers)

    def class_of(self, mask: int) -> str:
        """A mask as a class of letters."""
        return self._of_mask[mask]

    def spell(self, text: str) -> str | None:
        """The letters of a text; None if the language has no text with it."""
        numbers = [self._of_rank[self._characters.rank(character)] for character in text]
        return None if NONE in numbers else "".join(map(_letter, numbers))


def _ranks(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _blocks(masks: set[int]) -> list[int]:
    """Split the characters into the fewest blocks of which each mask is made."""
    blocks: list[int] = []
    for mask in sorted(masks):
        rest, split = mask, []
        for block in blocks:
            both = block & rest
            if both and both != block:
                split += [both, block ^ both]
            else:
                split.append(block)
            rest &= ~both
        blocks = split + [rest] * bool(rest)
    return sorted(blocks, key=lambda block: block & -block)


def _letter(number: int) -> str:
    number += _FIRST
    return chr(number if number < 0xD800 else number + 0x800)


def _class(numbers: list[int]) -> str:
    """Write a class for outlines-core, of ranges."""
    edges = [0, *(at for at, (one, other) in enumerate(pairwise(numbers), 1) if other != one + 1), len(numbers)]
    spans = [(numbers[first], numbers[last - 1]) for first, last in pairwise(edges)]
    return f"[{''.join(f'{_escape(low)}-{_escape(high)}' for low, high in spans)}]"


def _escape(number: int) -> str:
    return f"\\x{{{ord(_letter(number)):x}}}"


def _regex(language: Language, letters: _Letters) -> str:
    """Write a language for outlines-core, between two characters that no text has.

    It would prefer alternatives (of `a|ab`, it takes nothing but "a"): what ends with one and the same character has
    one end only. It also makes automata that look for a match everywhere, with many states: one that begins with a
    character of its own begins there only.
    """
    inner = "".join(piece if isinstance(piece, str) else letters.class_of(piece) for piece in language.pieces)
    return f"\\x00(?:{inner})\\x01"


def _deterministic(regex: str, symbols: list[str], letters: list[str]) -> tuple[Table, NDArray[np.bool_], int]:
    """Return a table of states and symbols, which states accept, and the first one."""
    begin, end, none = len(symbols), len(symbols) + 1, len(symbols) + 2
    ids = {symbol: [index] for index, symbol in enumerate(symbols)} | {_BEGIN: [begin], _END: [end]}
    for letter in letters:  # it refuses states from which no symbol leads on
        ids.setdefault(letter, [none])
    index = outlines_core.Index(regex, outlines_core.Vocabulary(none + 1, ids))
    found: dict[int, dict[int, int]] = index.get_transitions()
    numbers = {state: number for number, state in enumerate(found)}
    table = np.full((len(found), none + 2), NONE, np.int32)
    for state, row in found.items():
        table[numbers[state], list(row)] = [numbers[following] for following in row.values()]
    accepting = table[:, end] != NONE
    start = int(table[numbers[index.get_initial_state()], begin])
    return table[:, :begin], accepting, start
