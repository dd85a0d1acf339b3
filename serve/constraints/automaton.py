"""An automaton over the symbols of a model: which symbols may follow, at each state of a text that must match."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FORBIDDEN = -1


@dataclass(frozen=True, eq=False)
class Automaton:
    """The states are 0 (the first one) to n - 1, and n: a terminator has ended the text.

    From each of the n states a match can be reached. They are those of the smallest automaton, numbered in the order in
    which a breadth-first search finds them, by ascending symbol ids: equal on all machines.

    `transitions`, int32 (n, symbols), has the next state, `n` for a terminator, or FORBIDDEN; `accepting`, bool (n,),
    says whether the text so far matches. Symbols that a model never chooses are forbidden.
    """

    transitions: NDArray[np.int32]
    accepting: NDArray[np.bool_]

    @property
    def states(self) -> int:
        """n."""
        return len(self.transitions)

    @property
    def symbols(self) -> int:
        """The size of the vocabulary."""
        return int(self.transitions.shape[1])

    @property
    def ended(self) -> int:
        """The state of a text that a terminator has ended."""
        return self.states

    @cached_property
    def is_final(self) -> NDArray[np.bool_]:
        """bool (n + 1,): nothing can follow, and the text matches."""
        return np.append((self.transitions == FORBIDDEN).all(axis=1), True)

    def matches(self, state: int) -> bool:
        """Whether the text so far matches."""
        return state == self.ended or bool(self.accepting[state])

    def after(self, state: int, symbols: Iterable[int]) -> int:
        """The state after more symbols of a text, all of which are allowed."""
        for symbol in symbols:
            state = int(self.transitions[state, symbol])
        return state
