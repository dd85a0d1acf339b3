"""Patterns that cut text: what is allowed means what it means to Python, and takes bounded time."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.symbol_patterns import MAX_BYTES, PatternError, compile_pattern, translate

SMILES = r"\[[^\[\]]{1,64}\]|Br|Cl|%\d{2}|[A-Za-z]|\d|[()=#+\-.\\/@:~*$>]"
_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\.", "(?:a|bc)", "(ab|a)", "[]b]", r"\x61"])
_COUNTS = st.sampled_from(["", "?", "{2}", "{1,2}", "{0,2}"])
_SEQUENCES = st.lists(st.tuples(_ATOMS, _COUNTS).map("".join), min_size=1, max_size=3).map("".join)


@given(st.lists(_SEQUENCES, min_size=1, max_size=2).map("|".join), st.text("ab.c]1\n", max_size=8))
@settings(max_examples=300)
def test_a_pattern_matches_as_in_python(pattern: str, text: str) -> None:
    if re.fullmatch(pattern, "", re.ASCII):
        with pytest.raises(PatternError, match="empty text"):
            compile_pattern(pattern)
        return
    compiled = compile_pattern(pattern)
    mine, pythons = compiled.match(text), re.compile(pattern, re.ASCII).match(text)
    assert (mine and mine.group()) == (pythons and pythons.group())


@given(st.lists(_SEQUENCES, min_size=1, max_size=2).map("|".join), st.text("ab.c]1\n é", max_size=8))
@settings(max_examples=300)
def test_a_pattern_for_other_engines_matches_the_same(pattern: str, text: str) -> None:
    """In Python's syntax, without its flag for ASCII."""
    try:
        compiled = compile_pattern(pattern)
    except PatternError:
        return
    other = re.compile(translate(pattern, lambda code: f"\\U{code:08x}"))
    found, others = compiled.match(text), other.match(text)
    assert (found and found.group()) == (others and others.group())


@pytest.mark.parametrize("letter", "dDwWsS")
def test_sets_are_spelled_out(letter: str) -> None:
    text = "".join(map(chr, range(0x3000)))
    for pattern in (rf"\{letter}", rf"[x\{letter}]", rf"[^y\{letter}]"):
        other = re.compile(translate(pattern, lambda code: f"\\U{code:08x}"))
        assert other.findall(text) == compile_pattern(pattern).findall(text)


def test_a_count_that_other_engines_read_in_another_way_is_refused_for_them() -> None:
    assert translate("(a|){2}b", chr) == "(?:(?:a|)){2,2}b"
    with pytest.raises(PatternError, match="a count of what may be empty"):
        translate("(a|){0,2}b", chr)


def test_smiles_are_cut() -> None:
    text = r"C[C@@H](N)C(=O)OBr.Cl%12[nH]"
    assert compile_pattern(SMILES).findall(text) == [
        *("C", "[C@@H]", "(", "N", ")", "C", "(", "=", "O", ")", "O", "Br", ".", "Cl", "%12", "[nH]")
    ]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "is empty"),
        ("a*", "no bound"),
        ("[^]]+", "no bound"),
        ("a{2,}", "no bound"),
        ("a{3,2}", "counts rise"),
        ("a{0}", "counts rise"),
        ("a{300}", "counts rise"),
        ("a??", "a count after a count"),
        ("(?:a|a){30}b", "too many ways"),
        ("(?:(?:a?){9}){9}b", "too many ways"),
        ("a?", "matches the empty text"),
        ("a|", "matches the empty text"),
        ("[a-z]{200}[a-z]{200}", "up to 400 characters"),
        ("^a", r"'\^'"),
        ("a$", r"'\$'"),
        ("(?=a)b", "special group"),
        ("(?P<x>a)", "special group"),
        (r"(a)\1", "escape"),
        (r"\bx", "escape"),
        (r"\u00e", "4 hexadecimal digits"),
        ("(a", r"without '\)'"),
        ("a)", r"without '\('"),
        ("[a", "unexpected end"),
        ("[z-a]", "wrong order"),
        ("a\\", "unexpected end"),
        ("(" * 60 + "a" + ")" * 60, "too many groups"),
        ("a" * (MAX_BYTES + 1), "bytes"),
    ],
)
def test_other_patterns_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason):
        compile_pattern(pattern)
