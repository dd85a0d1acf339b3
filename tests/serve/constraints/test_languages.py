"""An automaton takes exactly the texts that `re.fullmatch` takes, and their beginnings: for random patterns."""

import re
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import regex
from hypothesis import given, settings

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.constraints.build import build
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.patterns import ConstraintError, Pattern

LETTERS = "ab1 \n"
SYMBOLS = ("C", "l", "Cl", "[nH]", "1", "[", "n", "Br", "", "H]")

# Each of them matches some character of LETTERS.
CLASSES = [
    "a",
    "b",
    "1",
    r"\n",
    ".",
    "[ab]",
    "[^a]",
    r"\d",
    r"\D",
    r"\w",
    r"\W",
    r"\s",
    r"\S",
    r"[^\d\n]",
    "[a-z]",
    "[]a]",
]
COUNTS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0,2}?", "{0}", "{,}"]


def compiled(
    value: str | tuple[str, ...], texts: Sequence[str] = LETTERS, terminators: Sequence[int] = ()
) -> Automaton:
    kind = "regex" if isinstance(value, str) else "choices"
    return build(Job(Pattern(kind, value), texts, terminators, 8192, 1 << 21, 1.0))


def patterns(classes: Sequence[str] = CLASSES) -> st.SearchStrategy[str]:
    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.lists(inner, max_size=3).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
            st.tuples(inner, st.sampled_from(["(?:{})", "({})", "(?P<n>{})", "(?#c){}"])).map(
                lambda given: given[1].format(given[0]) if given[0].count("(?P<n>") == 0 else given[0]
            ),
            st.tuples(inner, st.sampled_from(COUNTS)).map(lambda given: f"(?:{given[0]}){given[1]}"),
        )

    unnamed = st.recursive(st.sampled_from(classes), larger, max_leaves=6)
    return unnamed.filter(lambda pattern: pattern.count("(?P<n>") < 2)


def state_after(automaton: Automaton, ids: Sequence[int]) -> int:
    state = 0
    for each in ids:
        state = int(automaton.transitions[state, each])
        if state == FORBIDDEN:
            break
    return state


@settings(max_examples=100, deadline=None)
@given(patterns(), st.lists(st.lists(st.integers(0, len(LETTERS) - 1), max_size=7), min_size=1, max_size=8))
def test_texts_and_their_beginnings(pattern: str, texts: list[list[int]]) -> None:
    automaton = compiled(pattern)
    ours, theirs = re.compile(pattern), regex.compile(pattern)
    for ids in texts:
        text = "".join(LETTERS[each] for each in ids)
        state = state_after(automaton, ids)
        assert (state != FORBIDDEN and automaton.matches(state)) == bool(ours.fullmatch(text))
        assert (state != FORBIDDEN) == bool(theirs.fullmatch(text, partial=True))
    for ids in _walks(automaton):
        assert ours.fullmatch("".join(LETTERS[each] for each in ids))


def _walks(automaton: Automaton) -> list[list[int]]:
    """A text for each state that matches, of those that a breadth-first search reaches in few steps."""
    found: dict[int, list[int]] = {0: []}
    for _ in range(8):
        for state, ids in list(found.items()):
            for symbol in np.flatnonzero(automaton.transitions[state] != FORBIDDEN).tolist():
                found.setdefault(int(automaton.transitions[state, symbol]), [*ids, symbol])
    return [ids for state, ids in found.items() if automaton.matches(state)]


@settings(max_examples=60, deadline=None)
@given(
    patterns(["C", "l", "Cl", "Br", "1", r"\[nH\]", "[Cn]", "[^l]", ".", "é", r"\d", "[A-Z]l?"]),
    st.lists(st.lists(st.integers(0, len(SYMBOLS) - 1), max_size=5), min_size=1, max_size=8),
)
def test_longer_symbols_and_characters_that_the_model_lacks(pattern: str, texts: list[list[int]]) -> None:
    wanted = re.compile(pattern)
    try:
        automaton = compiled(pattern, SYMBOLS)
    except ConstraintError as error:
        assert "no text of this model matches" in str(error)  # noqa: PT017  # for some patterns, not for all
        assert not any(wanted.fullmatch("".join(SYMBOLS[each] for each in ids)) for ids in texts)
        return
    for ids in texts:
        state = state_after(automaton, ids)
        accepted = state != FORBIDDEN and automaton.matches(state)
        assert accepted == (8 not in ids and bool(wanted.fullmatch("".join(SYMBOLS[each] for each in ids))))
    for row in automaton.transitions:  # a match can be reached from everywhere
        assert (row != FORBIDDEN).any() or automaton.accepting.any()


@settings(max_examples=50, deadline=None)
@given(patterns())
def test_it_is_the_smallest_in_a_numbering_of_its_own(pattern: str) -> None:
    automaton = compiled(pattern)
    for same in (f"(?:{pattern})", f"{pattern}|{pattern}", f"(?:{pattern}){{1}}", f"(?:{pattern}|(?:{pattern})?é)"):
        if "(?P<n>" in pattern and pattern.count("(?P<n>") < same.count("(?P<n>"):
            continue
        other = compiled(same)
        assert np.array_equal(other.transitions, automaton.transitions)
        assert np.array_equal(other.accepting, automaton.accepting)
    seen = [0]
    for row in automaton.transitions:
        seen += [state for state in dict.fromkeys(row.tolist()) if state not in (*seen, FORBIDDEN)]
    assert seen == list(range(automaton.states))  # breadth first, by ascending symbols
    labels = automaton.accepting.astype(int)
    for _ in range(automaton.states):
        following = np.where(automaton.transitions == FORBIDDEN, -1, labels[automaton.transitions])
        labels = np.unique(np.column_stack([labels, following]), axis=0, return_inverse=True)[1].ravel()
    assert len(set(labels.tolist())) == automaton.states  # no two states are equal


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("abC", max_size=5), min_size=1, max_size=6))
def test_choices_are_taken_literally(choices: list[str]) -> None:
    automaton = compiled(tuple(choices), "abC.")
    other = compiled("|".join(re.escape(choice) for choice in choices), "abC.")
    assert np.array_equal(automaton.transitions, other.transitions)
    for choice in choices:
        assert automaton.matches(state_after(automaton, ["abC.".index(each) for each in choice]))


def test_special_characters_of_choices() -> None:
    automaton = compiled(("a.b", "[x]*", ""), "ab.x[]*")
    assert automaton.matches(0)
    assert not automaton.matches(state_after(automaton, [0, 2]))
    assert automaton.matches(state_after(automaton, [4, 3, 5, 6]))
    assert state_after(automaton, [0, 0]) == FORBIDDEN


@pytest.mark.parametrize("pattern", ["", "()", "a{0}", "(?:)*", "(|)", "é?", "(?#only a comment)", "^$"])
def test_the_empty_text_alone(pattern: str) -> None:
    automaton = compiled(pattern)
    assert automaton.states == 1
    assert automaton.is_final.tolist() == [True, True]


def test_terminators_follow_only_where_more_may_follow() -> None:
    newline = LETTERS.index("\n")
    automaton = compiled("ab?", terminators=[newline])
    after_a = state_after(automaton, [0])
    assert automaton.transitions[after_a, newline] == automaton.ended
    assert automaton.transitions[0, newline] == FORBIDDEN
    after_b = state_after(automaton, [0, 1])
    assert automaton.is_final[after_b]
    assert (automaton.transitions[after_b] == FORBIDDEN).all()
    own = compiled(r"a\n?b?", terminators=[newline])  # the pattern allows it there: part of the text
    state = state_after(own, [0, newline])
    assert state not in (own.ended, FORBIDDEN)
    assert own.transitions[state, newline] == own.ended


def test_a_large_model_is_compiled_by_what_the_pattern_tells_apart() -> None:
    texts = [chr(0x4E00 + number) for number in range(20_000)] + list("abc")
    automaton = compiled("a.{3}[^丁]b", texts)
    assert automaton.states == 7
    assert (automaton.transitions[4] != FORBIDDEN).sum() == len(texts) - 1
