"""Coded text: one code point for each symbol, and back to real text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import MOLECULES

from rill.serve.engine.text_codec import GivenText, TextCodec
from rill.vocabulary import UnknownCharacterError, Vocabulary

CODEC = TextCodec(MOLECULES)
TEXT_IDS = [index for index, symbol in enumerate(MOLECULES.symbols) if symbol not in ("<start>", "<end>")]


@given(st.lists(st.sampled_from(TEXT_IDS)))
def test_coded_text_has_one_code_point_for_each_symbol(ids):
    coded = CODEC.code(ids)
    assert len(coded) == len(ids)
    assert CODEC.encode(coded).tolist() == ids
    assert list(CODEC.symbols(coded)) == [MOLECULES.symbols[index] for index in ids]


def test_columns_of_ids_become_coded_texts():
    ids = np.array([[7, 12], [14, 13], [2, 15]])
    texts = CODEC.decode(ids, np.array([0, 1]), np.array([3, 2]))
    assert ["".join(CODEC.symbols(text)) for text in texts] == ["CCl(", "Br"]
    assert list(map(len, texts)) == [3, 1]


def test_start_and_end_symbols_have_no_text_and_unknown_is_shown_as_one_character():
    codec = TextCodec(Vocabulary(("<unk>", "ab", "^", "$"), "longest", "^", ("$",)))
    assert codec.symbols(codec.code([2, 1, 0, 3])) == ["", "ab", "\ufffd", ""]


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary(("a", "b")), Vocabulary(("<start>", "a", "<unk>", "b", "<end>"), start="<start>", ends=("<end>",))],
)
def test_text_of_characters_is_its_own_code(vocabulary):
    codec = TextCodec(vocabulary)
    assert codec.is_text
    assert codec.symbols("abba") == "abba"
    (text,) = codec.decode(codec.encode("abba")[:, None], np.array([0]), np.array([4]))
    assert text == "abba"


def test_a_start_or_end_symbol_of_one_character_is_in_no_text():
    codec = TextCodec(Vocabulary(("\n", "a", "^"), start="^", ends=("\n",)))
    for text in ("a^", "a\n"):
        with pytest.raises(UnknownCharacterError, match="at position 1 "):
            codec.encode(text)
    # Only a graph that breaks the rules makes these.
    assert codec.decode(np.array([[0], [1], [2]]), np.array([0]), np.array([3])) == ["\ufffda\ufffd"]


def test_symbols_beyond_the_surrogates_have_code_points():
    symbols = tuple(f"s{number:06}" for number in range(0xD800 + 3))
    codec = TextCodec(Vocabulary(symbols, "longest"))
    last = codec.code([0xD7FF, 0xD800, 0xD802])
    assert last == "\ud7ff\ue000\ue002"
    assert codec.symbols(last) == [symbols[0xD7FF], symbols[0xD800], symbols[0xD802]]


@pytest.mark.parametrize("begin", [0, 2, 3])
def test_the_end_follows_a_given_text(begin):
    text = GivenText(CODEC.code([7, 14, 15]), CODEC, begin, end=16)
    whole = [7, 14, 15, 16][begin:]
    assert len(text) == len(whole)
    for start in range(len(whole) + 1):
        for end in range(start, len(whole) + 1):
            assert text.ids(start, end).tolist() == whole[start:end]
