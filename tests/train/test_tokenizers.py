"""What --tokenizer and --symbols say."""

import json
from pathlib import Path

import pytest

from rill.train.errors import ConfigError, CorpusError
from rill.train.text.tokenizers import SMILES, read_symbols, tokenizer_of
from rill.vocabulary import Vocabulary


def test_words(tmp_path: Path) -> None:
    patterns = tmp_path / "patterns.txt"
    patterns.write_text("\\[[^\\]]{1,9}\\]\r\nCl|Br\r\n\r\n[A-Za-z0-9]\r\n")
    assert tokenizer_of("chars") == "characters"
    assert tokenizer_of("longest") == "longest"
    assert tokenizer_of("smiles") == f"regex:{SMILES}"
    assert tokenizer_of("regex:a|b") == "regex:a|b"
    assert tokenizer_of("regex", str(patterns)) == "regex:\\[[^\\]]{1,9}\\]|Cl|Br|[A-Za-z0-9]"


def test_smiles() -> None:
    symbols = ["[nH]", "Cl", "Br", "C", "l", "c", "%10", "%(123)", "1", "(", ")", "[C@@H]", "/", "\\", "=", "."]
    vocabulary = Vocabulary(tuple(symbols), f"regex:{SMILES}")
    text = "Clc1[nH]c(Br)C%10[C@@H]/C=C\\C%(123).C"
    cut = [symbols[index] for index in vocabulary.encode(text)]
    assert "".join(cut) == text
    assert cut[:5] == ["Cl", "c", "1", "[nH]", "c"]
    assert {"Br", "%10", "[C@@H]", "%(123)"} <= set(cut)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("regex", "needs a pattern: --tokenizer 'regex:PATTERN', --tokenizer smiles, or --symbols FILE"),
        ("regex:a*", r"--tokenizer 'regex:a\*': the pattern has '\*', which has no bound.* at position 1"),
        ("regex:", "the pattern is empty"),
        ("char", "must be chars, longest, regex, smiles or 'regex:PATTERN', not 'char'; did you mean chars?"),
        ("wordpiece", "not 'wordpiece'$"),
    ],
)
def test_other_words(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenizer_of(word)


def test_patterns_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "patterns.txt"
    file.write_text("Cl\n(Br\n")
    with pytest.raises(ConfigError, match=r"patterns.txt, line 2: the pattern has '\(' without '\)' at position 3"):
        tokenizer_of("regex", str(file))
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty; give the pattern of a symbol"):
        tokenizer_of("regex", str(file))


def test_symbols_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "symbols"
    file.write_bytes(b"\xef\xbb\xbf[nH]\r\nCl\r\nC\r\n \r\n\r\n\\n\r\n")
    assert read_symbols(str(file)) == ("[nH]", "Cl", "C", " ", "\\n")
    file.write_text(json.dumps(["\n", "Cl", "é"]))
    assert read_symbols(str(file)) == ("\n", "Cl", "é")
    file.write_text("[\n]\n")  # lines, though they begin like a list
    assert read_symbols(str(file)) == ("[", "]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n\na\n", r"symbols, line 4: 'a' is already line 1"),
        ('["a", "b", "a"]', "symbols, entry 3: 'a' is already entry 1"),
        ('["a",\n "b",]', r"symbols, line 2, column 6: not JSON"),
        ('["a", 1]', "symbols, entry 2: a symbol must be a string, not 1"),
        ('["a", ""]', "symbols, entry 2: a symbol cannot be empty"),
        ("x" * 257, "symbols, line 1: a symbol has at most 256 characters"),
        ("\n\n", "symbols has no symbol; write one a line"),
    ],
)
def test_symbols_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "symbols").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_symbols(str(tmp_path / "symbols"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: no such file"):
        read_symbols(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        read_symbols(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"a\n\xe9\n")
    with pytest.raises(CorpusError, match="latin is not UTF-8: byte 0xe9 at offset 2"):
        read_symbols(str(tmp_path / "latin"))
