"""Prompts as lists of ids: each is read as exactly these symbols, or refused with a sentence that says where."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import MOLECULES

from rill.gateway.api.prompts import SYMBOLS_AT_ONCE, ReadPrompt, biases_of, ids_of, ids_of_symbols, read_prompt
from rill.gateway.errors import ApiError
from rill.vocabulary import CHARACTERS, LONGEST, UNKNOWN, Vocabulary

WITH_UNKNOWN = Vocabulary((UNKNOWN, "a", "b", "ab", "<s>", "<e>"), LONGEST, "<s>", ("<e>",))
CARETS = Vocabulary(("^", "a", "b", "$"), CHARACTERS, "^", ("$",))


def read(vocabulary, ids, may_end=False):
    return asyncio.run(read_prompt("prompt", ids, vocabulary, True, may_end))


def refusal(vocabulary, ids, may_end=False):
    with pytest.raises(ApiError) as caught:
        read(vocabulary, ids, may_end)
    assert (caught.value.status, caught.value.param) == (400, "prompt")
    return caught.value.message


@given(st.lists(st.integers(0, len(MOLECULES) - 1), max_size=12), st.booleans())
def test_ids_are_read_as_they_are_or_not_at_all(ids, may_end):
    try:
        found = read(MOLECULES, ids, may_end)
    except ApiError:
        return
    assert found.given_ids == ids
    assert MOLECULES.encode(found.text) == found.ids
    assert found.end is None or may_end


def test_a_start_symbol_is_left_to_the_server():
    assert read(MOLECULES, [0, 7, 13]) == ReadPrompt("CBr", [7, 13], start=0)
    assert read(MOLECULES, [0]) == ReadPrompt("", [], start=0)
    assert read(CARETS, [0, 1]) == ReadPrompt("a", [1], start=0)
    assert refusal(MOLECULES, [7, 0]) == 'prompt[1] is 0, the start symbol "<start>": it can only be the first'
    assert refusal(CARETS, [0, 1, 0]) == 'prompt[2] is 0, the start symbol "^": it can only be the first'


def test_an_end_symbol_ends_a_text_that_is_scored():
    end = MOLECULES.end_ids[0]
    assert read(MOLECULES, [7, end], may_end=True) == ReadPrompt("C", [7], end=end)
    assert refusal(MOLECULES, [7, end]) == (
        f'prompt[1] is {end}, the end symbol "<end>": it can only be the last of a prompt that is scored (echo with '
        "logprobs)"
    )
    assert refusal(MOLECULES, [0, end, 7], may_end=True).startswith(f"prompt[1] is {end}, the end symbol")
    assert read(MOLECULES, [end, 7], may_end=True) == ReadPrompt("C", [7], start=end)  # as lm-eval begins a text
    assert read(MOLECULES, [end], may_end=True) == ReadPrompt("", [], end=end)
    assert refusal(MOLECULES, [end, 7]).startswith(f"prompt[0] is {end}, the end symbol")
    assert refusal(CARETS, [3, 1]).startswith('prompt[0] is 3, the end symbol "$"')


def test_ids_that_their_text_does_not_have_are_refused():
    assert refusal(WITH_UNKNOWN, [1, 1, 2]) == (
        'prompt[1] is 1 ("a"), but the text of these ids is read as 3 ("ab") there'
    )
    assert refusal(WITH_UNKNOWN, [4, 1, 2]).startswith('prompt[1] is 1 ("a")')
    assert read(WITH_UNKNOWN, [0, 3, 0]).ids == [0, 3, 0]
    brackets = Vocabulary(("a", "[", "[a]"), r"regex:\[a\]|\[|a")
    assert read(brackets, [1, 0]).text == "[a"
    pairs = Vocabulary(("a", "ab"), r"regex:[ab]{2}|a")
    assert refusal(pairs, [0, 0, 1]) == (
        "prompt: the text of these ids cannot be cut into symbols: character 'a' (U+0061) at position 0 does not begin "
        "a symbol of the model's vocabulary"
    )


def test_ids_that_no_symbol_has_are_refused():
    assert refusal(MOLECULES, [7, 99]) == "prompt[1] is 99; the ids of the model's symbols are 0 to 16"
    assert refusal(MOLECULES, [-1]).startswith("prompt[0] is -1")


def test_generated_symbols_keep_their_ids():
    """Cut again, `a` and `b` would be another symbol."""
    assert ids_of_symbols("abab", [1, 1, 2], WITH_UNKNOWN) == [1, 2, 3]


def test_biases_are_of_symbols_that_are_generated():
    ids = range(len(MOLECULES))
    found = biases_of(dict.fromkeys(ids, 1.0), MOLECULES)
    assert set(found) == set(MOLECULES.symbols) - {"<start>"}
    assert set(biases_of(dict.fromkeys(range(6), 1.0), WITH_UNKNOWN)) == {"a", "b", "ab", "<e>"}


async def test_a_long_text_lets_others_have_their_turn(monkeypatch):
    """Each turn cuts few symbols, however hard they are to find."""
    monkeypatch.setattr("rill.gateway.api.prompts.TURN_SECONDS", 0.0)
    text = "[" + "C" * 20 + "]"  # not a symbol: the pattern reads it anew at each of its characters
    hostile = Vocabulary((UNKNOWN, *MOLECULES.symbols), MOLECULES.tokenizer, "<start>", ("<end>",))
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    ids = await ids_of("prompt", text * 500, hostile, "prompt")
    waiting.cancel()
    assert len(ids) == 500 * len(text)
    assert turns >= len(ids) // SYMBOLS_AT_ONCE - 1
