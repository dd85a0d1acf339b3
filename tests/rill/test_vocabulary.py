"""The vocabulary is a bijection, cuts text, and names characters that it lacks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.vocabulary import CHARACTERS, LONGEST, UNKNOWN, UnknownCharacterError, Vocabulary


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
    vocabulary = Vocabulary(("00", "01", "1"), tokenizer="sequences")
    assert vocabulary.encode(["01", "1", "00"]) == vocabulary.encode(iter(("01", "1", "00"))) == [1, 2, 0]
    assert vocabulary.encode("11") == [2, 2]
    with pytest.raises(UnknownCharacterError, match=r"^symbol 'ab' at position 3 is not in the model's vocabulary$"):
        vocabulary.encode(iter(["00", "01", "1", "ab", "01"]))
    with pytest.raises(UnknownCharacterError, match=r"^symbol '' at position 0 is not"):
        vocabulary.encode([""])
    with_unknown = Vocabulary((UNKNOWN, "00"), tokenizer="sequences")
    assert with_unknown.encode(["00", "ab"]) == [1, 0]


def test_equal_vocabularies_agree_on_what_a_symbol_is() -> None:
    assert Vocabulary(("a", "b")) == Vocabulary(("a", "b"), tokenizer="characters")
    assert Vocabulary(("a", "b")) != Vocabulary(("a", "b"), tokenizer="sequences")


@pytest.mark.parametrize("symbols", [(), ("a", "a"), ("a", "")])
def test_an_invalid_vocabulary_of_a_tagger_is_refused(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(symbols, tokenizer="sequences")


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


SMILES = r"regex:\[[^\[\]]{1,64}\]|Br|Cl|%\d{2}|."
ATOMS = ("<s>", "</s>", "C", "Cl", "B", "Br", "[nH]", "(", ")", "%12", "%1", "1", "c")


@pytest.mark.parametrize("tokenizer", [LONGEST, SMILES])
def test_text_is_cut_into_longer_symbols(tokenizer: str) -> None:
    vocabulary = Vocabulary(ATOMS, tokenizer, "<s>", ("</s>",))
    symbols = ["C", "Cl", "(", "Br", ")", "[nH]", "%12", "1", "B"]
    ids = vocabulary.encode("".join(symbols))
    assert [ATOMS[each] for each in ids] == symbols
    assert vocabulary.decode([0, *ids, 1]) == "".join(symbols)
    assert vocabulary.encode(symbols) == ids
    assert vocabulary.begin(ids) == vocabulary.begin([0, *ids]) == [0, *ids]
    assert (vocabulary.never_ids, vocabulary.end_ids) == ((0,), (1,))
    with pytest.raises(UnknownCharacterError, match=r"'<' .* at position 1 does not begin a symbol") as caught:
        vocabulary.encode("C<s>")
    assert caught.value.position == 1


@given(
    st.lists(st.text("ab[]", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    st.text("ab[]c", max_size=20),
    st.sampled_from([LONGEST, r"regex:\[[^\]]{1,2}\]|ab?|.", CHARACTERS]),
    st.integers(1, 5),
)
def test_cutting_in_parts_is_cutting(symbols: list[str], text: str, tokenizer: str, most: int) -> None:
    if tokenizer == CHARACTERS:
        symbols = sorted(set("".join(symbols)))
    vocabulary = Vocabulary((UNKNOWN, *symbols), tokenizer)
    ids, end = vocabulary.cut(text)
    assert end == len(text)
    parts, at = [], 0
    while at < len(text):
        part, after = vocabulary.cut(text, at, most)
        assert 0 < len(part) <= most
        parts += part
        at = after
    assert parts == ids
    lengths = [1 if each == 0 else len(vocabulary.symbols[each]) for each in ids]
    assert sum(lengths) == len(text)
    at = 0
    for each, length in zip(ids, lengths, strict=True):
        if each:
            assert text[at : at + length] == vocabulary.symbols[each]
            longer = [symbol for symbol in symbols if text.startswith(symbol, at) and len(symbol) > length]
            assert not (longer and tokenizer == LONGEST)
        at += length


def test_entries_of_files() -> None:
    for vocabulary in (
        Vocabulary(("a", "b")),
        Vocabulary(ATOMS, SMILES, "<s>", ("</s>",)),
        Vocabulary(("a", "ab"), LONGEST),
        Vocabulary(("^", "a", "$"), start="^", ends=("$", "^")),
    ):
        assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
    assert Vocabulary(("a", "b")).to_json() == {"vocabulary": ["a", "b"]}
    assert Vocabulary(("^", "a"), start="^", ends=("^",)).never_ids == ()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tokenizer": "words"}, "tokenizer 'words' is not"),
        ({"tokenizer": "regex:a*"}, "no bound"),
        ({"start": "x"}, "start symbol 'x' is not in the vocabulary"),
        ({"ends": ("x",)}, "end symbol 'x' is not in the vocabulary"),
        ({"ends": ("a", "a")}, "repeat"),
        ({"ends": (UNKNOWN,)}, "cannot be the end symbol"),
        ({"start": "a", "ends": ("b",)}, "at least one symbol that a text can have"),
    ],
)
def test_impossible_tokenizers_and_special_symbols_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Vocabulary((UNKNOWN, "a", "b"), **options)
