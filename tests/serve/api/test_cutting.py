"""Texts of requests are cut into symbols in slices, so that other calls need not wait."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import MOLECULES

from rill.serve.api import cutting
from rill.serve.api.cutting import CUT_AT_ONCE, cut_text
from rill.serve.engine.text_codec import TextCodec
from rill.serve.errors import RequestError
from rill.vocabulary import Vocabulary


def model_of(vocabulary):
    return SimpleNamespace(bundle=SimpleNamespace(vocabulary=vocabulary), codec=TextCodec(vocabulary))


MODEL = model_of(MOLECULES)
TEXT_SYMBOLS = [symbol for symbol in MOLECULES.symbols if symbol not in ("<start>", "<end>")]


@given(st.lists(st.sampled_from(TEXT_SYMBOLS), max_size=5 * CUT_AT_ONCE).map("".join))
def test_a_text_is_cut_as_the_vocabulary_cuts_it(text):
    coded = asyncio.run(cut_text(text, MODEL, 1000, "prompt"))
    assert MODEL.codec.encode(coded).tolist() == MOLECULES.cut(text)[0]


async def test_text_of_characters_is_not_cut():
    assert await cut_text("漢" * 9, model_of(Vocabulary(("a",))), 3, "prompt") == "漢" * 9


@pytest.mark.parametrize("at", [0, CUT_AT_ONCE - 1, CUT_AT_ONCE, 5000])
async def test_what_begins_no_symbol_is_named_with_its_position_in_the_text(at):
    text = "Cl" * at + "X" + "Cl" * 9
    with pytest.raises(RequestError, match=f"^prompt: character 'X' .* at position {2 * at} ") as caught:
        await cut_text(text, MODEL, 10**6, "prompt")
    assert caught.value.field == "prompt"


async def test_what_fits_no_symbol_is_one_unknown_each():
    model = model_of(Vocabulary(("<unk>", "ab"), "longest"))
    coded = await cut_text("ab漢xab", model, 9, "prompt")
    assert model.codec.symbols(coded) == ["ab", "\ufffd", "\ufffd", "ab"]


@pytest.mark.parametrize("symbols", [1, CUT_AT_ONCE, 3 * CUT_AT_ONCE + 1])
async def test_the_limit_counts_symbols(symbols):
    assert len(await cut_text("[nH]" * symbols, MODEL, symbols, "prompt")) == symbols
    with pytest.raises(RequestError, match=f"has more symbols of the model than the limit of this server, {symbols}$"):
        await cut_text("[nH]" * symbols + "C", MODEL, symbols, "prompt")


async def test_a_text_far_beyond_the_limit_is_not_cut(monkeypatch):
    monkeypatch.setattr(Vocabulary, "cut", None)
    with pytest.raises(RequestError, match="more symbols"):
        await cut_text("C" * 401, MODEL, 100, "prompt")  # no symbol is longer than 4


async def test_one_slice_of_one_text_is_cut_in_each_turn_of_the_event_loop(monkeypatch):
    """A slice is over when its time is, and has a few symbols more at most, however long and many texts are."""
    now, turns, cuts = 0.0, 0, []
    cut = Vocabulary.cut

    def slow(vocabulary, text, begin, most):
        nonlocal now
        assert most <= CUT_AT_ONCE
        now += cutting.SLICE_SECONDS / 3
        if begin:  # the beginning of a text, which most texts are, is cut at once
            cuts.append(turns)
        return cut(vocabulary, text, begin, most)

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Vocabulary, "cut", slow)
    monkeypatch.setattr(cutting, "time", SimpleNamespace(perf_counter=lambda: now))
    other = asyncio.create_task(take_turns())
    texts = ["Cl" * 1000, "C" * 1000, "Br" * 1000]
    coded = await asyncio.gather(*(cut_text(text, MODEL, 1000, "prompt") for text in texts))
    other.cancel()
    assert ["".join(MODEL.codec.symbols(each)) for each in coded] == texts
    assert len(cuts) > 80
    assert max(map(cuts.count, cuts)) <= 4
