"""Automata made by hand, for tests that need no compiler."""

from collections.abc import Sequence

import numpy as np

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.vocabulary import Vocabulary


def sequence(vocabulary: Vocabulary, *classes: str) -> Automaton:
    """One character of each of the `classes`, one after another; nothing can follow."""
    n = len(classes) + 1
    transitions = np.full((n, len(vocabulary)), FORBIDDEN, np.int32)
    for state, characters in enumerate(classes):
        transitions[state, [vocabulary.id_of(character) for character in characters]] = state + 1
    return Automaton(transitions, np.arange(n) == n - 1)


def repetition(vocabulary: Vocabulary, characters: str, least: int = 0, terminator: str = "\n") -> Automaton:
    """At least so many of `characters`, then the terminator ("": none)."""
    n = least + 1
    transitions = np.full((n, len(vocabulary)), FORBIDDEN, np.int32)
    for character in characters:
        transitions[:, vocabulary.id_of(character)] = np.minimum(np.arange(n) + 1, least)
    if terminator:
        transitions[least, vocabulary.id_of(terminator)] = n
    return Automaton(transitions, np.arange(n) == least)


def random_automaton(
    symbols: int, states: int, seed: int, terminator: int | None = None, never: Sequence[int] = ()
) -> Automaton:
    """A way through all states to an end where nothing can follow, and many other transitions."""
    random = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(symbols), [*never, *([] if terminator is None else [terminator])])
    transitions = np.full((states, symbols), FORBIDDEN, np.int32)
    for state in range(states - 1):
        some = random.choice(allowed, random.integers(1, len(allowed) + 1), replace=False)
        transitions[state, some] = random.integers(0, states, len(some))
        transitions[state, some[0]] = state + 1
    accepting = random.random(states) < 0.2
    accepting[-1] = True
    if terminator is not None:
        transitions[:-1, terminator] = np.where(accepting[:-1], states, FORBIDDEN)
    return Automaton(transitions, accepting)


def text_state(automaton: Automaton, vocabulary: Vocabulary, text: str) -> int:
    """The state after a text, or FORBIDDEN if the automaton does not allow it."""
    state = 0
    for symbol in vocabulary.encode(text):
        if state == FORBIDDEN:
            return FORBIDDEN
        state = int(automaton.transitions[state, symbol])
    return state
