"""Cutting whole texts equals Vocabulary.cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.train.errors import CorpusError
from rill.train.text.cutting import LINE_END, UNSEEN, cut_text, require_known
from rill.vocabulary import CHARACTERS, LONGEST, UNKNOWN, UnknownCharacterError, Vocabulary

TOKENIZERS = [
    (CHARACTERS, ("a", "b", "[", "]", "é")),
    (LONGEST, ("a", "b", "ab", "abb", "[", "]", "[a]", "b\n", "é")),
    (r"regex:\[[^\]]{1,3}\]|ab{1,2}|[abé]", ("a", "b", "ab", "abb", "[a]", "[b\n]", "é")),
]
texts = st.text("ab[]é\nx", max_size=60)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rill.train.text.cutting.PIECE", 16)
    monkeypatch.setattr("rill.train.text.cutting.MAX_SYMBOL", 6)


@pytest.mark.parametrize("unknown", [(), (UNKNOWN,)])
@pytest.mark.parametrize(("tokenizer", "symbols"), TOKENIZERS)
@given(text=texts)
def test_a_text(tokenizer: str, symbols: tuple[str, ...], unknown: tuple[str, ...], text: str) -> None:
    vocabulary = Vocabulary((*unknown, *symbols), tokenizer)
    cut = cut_text(text, tokenizer, symbols)
    assert "".join(cut.symbols[number] for number in cut.numbers) == text
    ids = cut.encode(vocabulary)
    unseen = np.flatnonzero(ids == UNSEEN).tolist()
    if not unseen:
        assert ids.tolist() == vocabulary.encode(text)
        require_known(cut, vocabulary, ids, lambda text, position: "")
        return
    with pytest.raises(UnknownCharacterError) as raised:
        vocabulary.encode(text)
    assert cut.position_of(unseen[0]) == raised.value.position
    with pytest.raises(CorpusError, match=f"^in {raised.value.position}: "):
        require_known(cut, vocabulary, ids, lambda text, position: f"in {position}")


@pytest.mark.parametrize("unknown", [(), (UNKNOWN,)])
@pytest.mark.parametrize(("tokenizer", "symbols"), TOKENIZERS)
@given(lines=st.lists(st.text("ab[]éx", max_size=12), max_size=8))
def test_lines(tokenizer: str, symbols: tuple[str, ...], unknown: tuple[str, ...], lines: list[str]) -> None:
    vocabulary = Vocabulary((*unknown, *symbols), tokenizer)
    ids = cut_text("".join(f"{line}\n" for line in lines), tokenizer, symbols, lines=True).encode(vocabulary).tolist()
    for line in lines:
        end = ids.index(LINE_END)
        try:
            assert ids[:end] == vocabulary.encode(line)
        except UnknownCharacterError:
            assert UNSEEN in ids[:end]
        ids = ids[end + 1 :]
    assert not ids


def test_special_symbols_do_not_come_from_text() -> None:
    vocabulary = Vocabulary(("<s>", "^", "a"), r"regex:<s>|\^|a", "<s>", ("^",))
    assert cut_text("a^<s>a", vocabulary.tokenizer).encode(vocabulary).tolist() == [2, UNSEEN, UNSEEN, 2]


def test_counts() -> None:
    assert cut_text("ab\nabb\n", LONGEST, ("a", "b", "ab"), lines=True).counts == {"ab": 2, "b": 1}
    assert cut_text("", r"regex:a").counts == {}
