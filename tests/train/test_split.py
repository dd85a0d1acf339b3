"""What is held out, and what is said about it."""

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import InterruptAfter, assert_same_run

from rill.train.command import main, parse_options
from rill.train.config import TrainingConfig
from rill.train.errors import ConfigError, CorpusError
from rill.train.plan import make_plan
from rill.train.record.folder import load_config
from rill.train.text.order import looks_sorted
from rill.train.text.split import TextSplit, _draw, read_sequences, read_texts

TINY = ["--hidden", "4", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu"]
WORDS = sorted("".join(random.Random(n).choices(string.ascii_lowercase, k=3 + n % 6)) for n in range(400))


def split(*specs: Path, **options: Any) -> TextSplit:
    return read_texts(TrainingConfig(steps=1, corpus=tuple(map(str, specs)), **options))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    return tmp_path / "words.txt"


def test_lines_are_drawn_by_the_seed(words: Path) -> None:
    texts = split(words, held_out="lines", validation=0.1)
    training, held_out = texts.training.splitlines(), texts.held_out.splitlines()
    assert sorted(training + held_out) == WORDS
    assert (training, held_out) == (sorted(training), sorted(held_out))  # both keep the order of the text
    assert len(texts.held_out) == pytest.approx(0.1 * len(words.read_text()), abs=10)
    assert len({word[0] for word in held_out}) > 10  # not the end of the alphabet
    assert split(words, held_out="lines", validation=0.1) == texts
    assert split(words, held_out="lines", validation=0.1, seed=1) != texts
    assert set(texts.alphabet) == set(words.read_text()) | {"\n"}


def test_documents_are_whole_files(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"{number:02} and no newline" * (1 + number % 3))
    documents = [path.read_text() for path in sorted(tmp_path.iterdir())]
    texts = split(tmp_path, held_out="documents", validation=0.25)
    training, held_out = texts.training.split("\n"), texts.held_out.split("\n")
    assert training == [document for document in documents if document not in held_out]
    assert sorted(training + held_out) == documents
    assert 0.2 < len(texts.held_out) / len("".join(documents)) < 0.3
    with pytest.raises(CorpusError, match="10% of 1 documents cannot be held out; use another --validation, or --held"):
        split(tmp_path / "00.txt", held_out="documents")
    with pytest.raises(CorpusError, match="1% of 2 lines cannot be held out"):
        split(tmp_path / "00.txt", tmp_path / "01.txt", held_out="lines", validation=0.01)


@given(st.lists(st.text("ab\n\u2028 ", min_size=1), min_size=1), st.floats(0.01, 0.99), st.integers(0, 9))
def test_nothing_is_lost_and_the_share_is_near(lines: list[str], fraction: float, seed: int) -> None:
    sizes = [len(line) for line in lines]
    chosen = _draw(sizes, fraction, seed)
    share = sum(sizes[index] for index in chosen)
    assert abs(share - fraction * sum(sizes)) <= max(fraction * sum(sizes), *sizes)


def test_only_newlines_end_lines_and_preparation_follows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"Line {chr(97 + n)}\u2028\x0c still it\n" for n in range(20)))
    texts = split(tmp_path / "a.txt", held_out="lines", validation=0.2)
    assert all(line.startswith("Line ") and line.endswith(" still it") for line in texts.held_out[:-1].split("\n"))
    assert texts.held_out.count("\n") == 4
    assert "\n" not in split(tmp_path / "a.txt", held_out="lines", validation=0.2, prepare="line").held_out


@pytest.mark.parametrize(
    "options",
    [
        {"characters": 9},
        {"characters": 9, "validation_characters": 9},
        {"validation_corpus": ("a",)},
        {"validation": 0},
    ],
)
def test_what_contradicts_a_draw_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="held_out 'lines' draws a fraction of the whole corpus; give it with"):
        TrainingConfig(steps=1, held_out="lines", **options)
    with pytest.raises(ConfigError, match="held_out must be tail, lines or documents, not 'line'"):
        TrainingConfig(steps=1, held_out="line")


def test_sequences_of_a_tagger_are_drawn_anyway() -> None:
    with pytest.raises(ConfigError, match="held_out is for text; the held-out sequences of a tagger are drawn in any"):
        read_sequences(TrainingConfig(steps=1, held_out="lines", corpus=("subtraction:4",)))


# Sorted lists


def prose() -> list[str]:
    words = random.Random(0)
    return [" ".join(words.choices(WORDS, k=words.randint(5, 12))) for _ in range(500)]


@pytest.mark.parametrize(
    ("lines", "is_sorted"),
    [
        (WORDS, True),
        (["# a list", "", *WORDS[:200], "A heading", *WORDS[200:]], True),
        (WORDS[::-1], True),
        ([word.title() if n % 2 else word for n, word in enumerate(WORDS)], True),
        (sorted(prose(), key=len), True),
        ([f"2026-01-01 00:{n // 60:02}:{n % 60:02} event" for n in range(600)], True),
        (random.Random(1).sample(WORDS, len(WORDS)), False),
        (prose(), False),
        (["the same"] * 500, False),
        (["the same"] * 250 + ["another"] * 250, False),
        (WORDS[:50], False),
        ([], False),
        ([""] * 500, False),
        (["x" * 5000] * 3, False),
    ],
)
def test_a_sorted_list_is_recognised(lines: list[str], is_sorted: bool) -> None:
    assert looks_sorted("\n".join(lines)) is is_sorted


def test_lines_are_advised_where_the_text_is_sorted(words: Path) -> None:
    (note,) = split(words).notes
    assert note == "the lines are sorted; --held-out lines draws a part that is like the rest"
    for options in ({"held_out": "lines"}, {"validation": 0.0}, {"validation_corpus": (str(words),)}):
        assert split(words, **options).notes == ()


# Runs


def test_options_of_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "--suffix abc,.LOG *.smi --suffix .fa.gz --encoding utf-8,cp1252"
    training = make_plan(parse_options(["--corpus", "x", "--out", str(tmp_path / "run"), *given.split()])).training
    assert training.suffix == (".abc", ".log", ".smi", ".fa.gz")
    assert training.encodings == ("utf-8", "cp1252")
    for options, complaint in {
        "--encoding utf8x": "encoding must be names of text encodings, such as utf-8, cp1252, latin-1,",
        "--encoding cp1253,rot13": "encoding must be names of text encodings",
        "--suffix *": "suffix must be suffixes of file names in small letters, such as .txt (all files: --corpus 'FOLD",
        "--held-out files": "held_out must be tail, lines or documents, not 'files'",
    }.items():
        assert main(["--corpus", "x", "--out", str(tmp_path / "run"), *options.split()]) == 2
        assert capsys.readouterr().err.startswith(f"error: {complaint}")


def test_the_defaults_are_not_stored(tmp_path: Path) -> None:
    """A run of the defaults has the config.json of the first version, and its checkpoint the same digest."""
    assert not TrainingConfig(steps=1).to_json().keys() & {"suffix", "encoding", "held_out"}
    section = TrainingConfig(steps=1, suffix=(".abc",), encoding="cp1252", held_out="lines").to_json()
    assert (section["suffix"], section["encoding"], section["held_out"]) == ((".abc",), "cp1252", "lines")
    assert TrainingConfig.from_json(json.loads(json.dumps(section))).suffix == (".abc",)


@pytest.mark.usefixtures("quick_training")
def test_a_run_keeps_its_split_and_may_find_its_text_elsewhere(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "a.abc").write_text("naïve\n" + words.read_text(), encoding="latin-1")
    options = [*TINY, "--steps", "6", "--evaluate-every", "2", "--held-out", "lines"]
    start = ["--corpus", str(folder), "--suffix", ".abc", "--encoding", "latin-1", *options]
    assert main([*start, "--out", str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: 1 file, 2,601 characters, ")
    monkeypatch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(3))
    assert main([*start, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    moved = tmp_path / "moved.txt"
    moved.write_text("naïve\n" + words.read_text(), encoding="utf-8")
    resume = ["--out", str(tmp_path / "cut"), "--resume"]
    assert main([*resume, "--held-out", "tail"]) == 2
    assert "was started with held_out 'lines', not 'tail'" in capsys.readouterr().err
    assert main([*resume, "--corpus", str(moved), "--encoding", "utf-8"]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    held_out = (tmp_path / "whole" / "held_out.txt").read_text()
    assert held_out == read_texts(load_config(tmp_path / "cut").training).held_out
    assert held_out == (tmp_path / "cut" / "held_out.txt").read_text()


@pytest.mark.usefixtures("quick_training")
def test_the_first_lines_say_what_was_read(words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(words.with_name(f"{name}.txt")) for name in "abcd"]
    for path in paths:
        Path(path).write_text(words.read_text())
    assert main(["--corpus", *paths, "--out", str(tmp_path / "run"), *TINY, "--steps", "1"]) == 0
    first, _, third, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{' '.join(paths[:3])} and 1 more: 4 files, 10,383 characters, ")
    assert third.startswith("note: the lines are sorted; --held-out lines")
