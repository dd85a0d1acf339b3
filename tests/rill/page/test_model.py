"""model.js reads a description and a text as rill.vocabulary does."""

from node import modules, run_node

from rill.vocabulary import UNKNOWN, Vocabulary

PROGRAM = """
import { Description } from "./standalone/model.js";
const result = ({ content, text }) => {
  try { return new Description(content).encode(text); } catch (error) { return error.message; }
};
report(data.map(result));
"""


def _content(symbols, **changes):
    vocabulary = Vocabulary(symbols)
    return {
        "format": 1,
        "model": {"layers": 1, "hidden": 2},
        "states": [{"name": "state_h"}],
        "vocabulary": list(symbols),
        "unknown_id": vocabulary.unknown_id,
    } | changes


def test_texts_are_read_by_code_points(tmp_path):
    plain, unknown = ("\n", "a", "😀", "é"), (UNKNOWN, "a", "漢")
    cases = [
        (plain, "a😀\né"),
        (plain, ""),
        (plain, "ae\u0301"),  # two code points
        (plain, "ab😀"),
        (unknown, "a😀漢\ud800"),
        (unknown, "<unk>"),  # five characters, none of them the symbol
    ]
    data = [{"content": _content(symbols), "text": text} for symbols, text in cases]
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
