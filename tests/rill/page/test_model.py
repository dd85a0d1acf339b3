"""model.js reads a description and a text as rill.vocabulary does."""

import pytest
from hypothesis import strategies as st
from node import drawn, modules, run_node
from random_models import MOLECULES

from rill.page.errors import PageError
from rill.page.vocabulary import described
from rill.vocabulary import CHARACTERS, LONGEST, UNKNOWN, UnknownCharacterError, Vocabulary

PROGRAM = """
import { Description } from "./standalone/model.js";
const result = ({ content, text }) => {
  try { return new Description(content).encode(text); } catch (error) { return error.message; }
};
report(data.map(result));
"""


def _content(vocabulary, **changes):
    return {
        "format": 1,
        "model": {"layers": 1, "hidden": 2},
        "states": [{"name": "state_h"}],
        "context": 0,
        **described(vocabulary),
    } | changes


def test_texts_are_read_by_code_points(tmp_path):
    plain, unknown = Vocabulary(("\n", "a", "😀", "é")), Vocabulary((UNKNOWN, "a", "漢"))
    cases = [
        (plain, "a😀\né"),
        (plain, ""),
        (plain, "ae\u0301"),  # two code points
        (plain, "ab😀"),
        (unknown, "a😀漢\ud800"),
        (unknown, "<unk>"),  # five characters, none of them the symbol
    ]
    data = [{"content": _content(vocabulary), "text": text} for vocabulary, text in cases]
    data.append({"content": _content(plain, format=2), "text": ""})
    assert run_node(modules(tmp_path), PROGRAM, data) == [
        [1, 2, 0, 3],
        [],
        "The model does not know the character e (U+0065) at position 2.",
        "The model does not know the character b (U+0062) at position 2.",
        [1, 0, 2, 0],
        [0, 0, 0, 0, 0],
        "model.json has format 2; this page reads 1",
    ]


VOCABULARIES = [
    MOLECULES,
    Vocabulary((UNKNOWN, *MOLECULES.symbols), MOLECULES.tokenizer, "<start>", ("<end>",)),
    Vocabulary((UNKNOWN, *"^$abcé\n ", "ab", "abca", "<s", "漢字", "😀😀", "a😀"), LONGEST, "^", ("$",)),
    Vocabulary(("<start>x", *"<star>x^", "^a", "<end>", "\n"), LONGEST, "^", ("<end>",)),
    Vocabulary(("^", *"ab[é😀", "$"), CHARACTERS, "^", ("$",)),
    Vocabulary(("<b>", *"ab<>\n", "<a>", "😀"), r"regex:<\w{1,5}>|\W|[a-c]", "<b>"),
    Vocabulary((UNKNOWN, *"ab]-😀", "a-", "😀a", "]]"), r"regex:[^\Wb][-😀]|[]]{1,2}|\S\S?", "a"),
    Vocabulary((UNKNOWN, "a", "é"), r"regex:[^\x00-\x60]{1,3}|\s\d|.", ""),
]


def test_texts_are_cut_as_in_python(tmp_path):
    """Ids, or the position of what cannot be cut."""
    parts = sorted({symbol for vocabulary in VOCABULARIES for symbol in vocabulary.symbols} | set("[x]^$<>%1é漢 \t\r"))
    texts = drawn(st.lists(st.sampled_from(parts), max_size=8).map("".join), 300)
    data = [{"content": _content(one), "text": text} for one in VOCABULARIES for text in texts]
    found = iter(run_node(modules(tmp_path), PROGRAM, data))
    for vocabulary in VOCABULARIES:
        for text in texts:
            answer = next(found)
            try:
                assert answer == vocabulary.encode(text), (vocabulary.tokenizer, text)
            except UnknownCharacterError as error:
                code = f"(U+{ord(error.character):04X}) at position {error.position + 1}"
                assert code in answer, (vocabulary.tokenizer, text)


def test_a_pattern_that_browsers_read_in_another_way_is_refused():
    with pytest.raises(PageError, match="in a way that browsers cannot: the pattern has a count of what may be empty"):
        described(Vocabulary(("a",), "regex:(a|){0,3}a"))
