"""The vocabulary is a bijection, and names characters that it lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary


@given(st.text(min_size=1))
def test_every_text_survives_its_own_vocabulary(text: str) -> None:
    vocabulary = Vocabulary.of_text(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert list(vocabulary.symbols) == sorted(set(text))


@given(st.text(alphabet="abcdef\n", min_size=1), st.integers(2, 4))
def test_rare_characters_become_unknown(text: str, min_count: int) -> None:
    vocabulary = Vocabulary.of_text(text, min_count)
    assert vocabulary.symbols[0] == UNKNOWN
    for character, index in zip(text, vocabulary.encode(text), strict=True):
        rare = text.count(character) < min_count
        assert vocabulary.symbols[index] == (UNKNOWN if rare else character)


def test_an_unknown_character_is_named_with_its_position() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'é' \(U\+00E9\) at position 2") as caught:
        Vocabulary.of_text("abc").encode("abéc")
    assert (caught.value.character, caught.value.position) == ("é", 2)


@pytest.mark.parametrize(("text", "start"), [("b\na", "\n"), ("cab", "a")])
def test_generation_starts_from_newline_or_the_first_symbol(text: str, start: str) -> None:
    vocabulary = Vocabulary.of_text(text)
    assert vocabulary.symbols[vocabulary.start_id] == start


def test_taggers_read_symbols_of_several_characters() -> None:
    vocabulary = Vocabulary(("00", "01", "1"), characters=False)
    assert vocabulary.encode(["01", "1", "00"]) == vocabulary.encode(iter(("01", "1", "00"))) == [1, 2, 0]
    assert vocabulary.encode("11") == [2, 2]
    with pytest.raises(UnknownCharacterError, match=r"^symbol 'ab' at position 3 is not in the model's vocabulary$"):
        vocabulary.encode(iter(["00", "01", "1", "ab", "01"]))
    with pytest.raises(UnknownCharacterError, match=r"^symbol '' at position 0 is not"):
        vocabulary.encode([""])
    with_unknown = Vocabulary((UNKNOWN, "00"), characters=False)
    assert with_unknown.encode(["00", "ab"]) == [1, 0]


def test_equal_vocabularies_agree_on_what_a_symbol_is() -> None:
    assert Vocabulary(("a", "b")) == Vocabulary(("a", "b"), characters=True)
    assert Vocabulary(("a", "b")) != Vocabulary(("a", "b"), characters=False)


@pytest.mark.parametrize("symbols", [(), ("a", "a"), ("a", "")])
def test_an_invalid_vocabulary_of_a_tagger_is_refused(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(symbols, characters=False)


@pytest.mark.parametrize("symbols", [(), ("a", "a"), ("ab",), ("",)])
def test_an_invalid_vocabulary_is_refused(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(symbols)


def test_some_character_is_read_as_unknown() -> None:
    assert Vocabulary(("a", "b")).unknown_character is None
    for symbols in (("<unk>", "a"), ("a", "<unk>", "\ufffd", "\ufffc")):
        vocabulary = Vocabulary(symbols)
        character = vocabulary.unknown_character
        assert character is not None
        assert vocabulary.encode(character) == [vocabulary.unknown_id]
