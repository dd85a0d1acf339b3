"""What a run is to be: options that a run cannot follow any more, and texts that cannot be read again."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rill.train.command import main, parse_options
from rill.train.config import ModelConfig, TrainingConfig
from rill.train.errors import ConfigError, RunError
from rill.train.plan import Plan, make_plan
from rill.train.record.folder import RunConfig, save_config
from rill.train.text.files import is_stream
from rill.vocabulary import Vocabulary


def plan(*arguments: object) -> Plan:
    return make_plan(parse_options([str(argument) for argument in arguments]))


def save(folder: Path, complete: bool = False, task: str = "generate", **training: Any) -> Path:
    folder.mkdir()
    config = TrainingConfig(**{"corpus": ("book.txt",), "steps": 5} | training)
    labels = ("x", "y") if task == "tag" else ()
    vocabulary = Vocabulary(("a", "b"), tokenizer="characters" if task == "generate" else "sequences")
    save_config(folder, RunConfig(ModelConfig(hidden=8, task=task), config, vocabulary, labels))
    if complete:
        (folder / "summary.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ("--epochs 5", "it is trained further by rill train --from RUN --out NEW --corpus book.txt --epochs 5"),
        ("--steps 6", "--from RUN --out NEW --corpus book.txt --steps 6"),
        ("--learning-rate 0.001", "--from RUN --out NEW --corpus book.txt --learning-rate 0.001"),
        ("--corpus /no/such/file", "--from RUN --out NEW --corpus /no/such/file"),
        ("--corpus book.txt more", "--from RUN --out NEW --corpus book.txt more"),
        ("--hidden 999", "choose another --out; this one is trained further by rill train --from RUN --out NEW"),
        ("--seed 3 --no-bias", "--from RUN --out NEW --corpus book.txt --seed 3"),
        ("--dropout 0.5", "--from RUN --out NEW --corpus book.txt --dropout 0.5"),
        ("--prefix ROMEO:", "--from RUN --out NEW --corpus book.txt --prefix ROMEO:"),
        ("--recipe timemachine-gru", "--from RUN --out NEW --corpus book.txt --recipe timemachine-gru"),
        ("--from elsewhere", "--from RUN --out NEW --corpus book.txt"),
        ("--extend-vocabulary", "--from RUN --out NEW --corpus book.txt --extend-vocabulary"),
    ],
)
def test_options_of_a_complete_run_are_refused_with_the_way(tmp_path: Path, options: str, way: str) -> None:
    run = save(tmp_path / "run", complete=True)
    with pytest.raises(RunError) as error:
        plan("--out", run, "--resume", *options.split())
    message = str(error.value).replace(str(run), "RUN")
    assert message.startswith(f"RUN is complete, without {options}; ")
    assert message.endswith(way) or f"{way} " in message
    assert "--from RUN --out NEW" in message


def test_the_options_that_a_complete_run_was_trained_with_are_accepted(tmp_path: Path) -> None:
    run = save(tmp_path / "run", complete=True)
    for options in ("", "--corpus book.txt --steps 5 --hidden 8", "--device cuda --threads 3"):
        assert plan("--out", run, "--resume", *options.split()).complete


def test_a_complete_tagger_and_a_start_without_resume_are_told_another_way(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is complete, without --epochs 5; train another one, with another --out"):
        plan("--out", save(tmp_path / "tagger", complete=True, task="tag"), "--resume", "--epochs", 5)
    run = save(tmp_path / "run", complete=True)
    with pytest.raises(RunError, match=f"choose another --out, or train it further: --from {run} --out NEW"):
        plan("--out", run, "--corpus", "book.txt")
    with pytest.raises(RunError, match="already holds a run; continue it with --resume or choose another --out"):
        plan("--out", save(tmp_path / "unfinished"), "--corpus", "book.txt")


@pytest.fixture
def pipe() -> Iterator[str]:
    """The name of an open pipe, as `<(…)` makes one."""
    reader, writer = os.pipe()
    yield f"/dev/fd/{reader}"
    os.close(reader)
    os.close(writer)


def test_what_can_be_read_only_once(tmp_path: Path, pipe: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for spec in ("-", "/dev/stdin", pipe, "/dev/fd/999", "/proc/self/fd/3", str(tmp_path / "fifo"), f"{tmp_path}/link"):
        assert is_stream(spec), spec
    for spec in ("", "pydoc", "nowhere", "a\0b", str(tmp_path), str(tmp_path / "file")):
        assert not is_stream(spec), spec


def test_a_run_that_read_a_pipe_needs_its_text_again(tmp_path: Path, pipe: str) -> None:
    run = save(tmp_path / "run", corpus=("-",))
    with pytest.raises(
        RunError, match="text from standard input, which cannot be read again; give the text with --corpus"
    ):
        plan("--out", run, "--resume")
    for spec in ("book.txt", "-"):  # the digest of the text decides
        assert plan("--out", run, "--resume", "--corpus", spec).training.corpus == (spec,)
    run = save(tmp_path / "substituted", corpus=("book.txt",), validation_corpus=(pipe,))
    with pytest.raises(RunError, match=f"text from {pipe}, which .* with --validation-corpus FILE, or pipe it"):
        plan("--out", run, "--resume")


def test_a_pipe_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for second in ("-", "/dev/stdin"):
        with pytest.raises(ConfigError, match="standard input can be read only once, but is given 2 times"):
            plan("--out", tmp_path / "run", "--corpus", "-", "--validation-corpus", second)
    assert main(["--out", str(tmp_path / "run"), "--corpus", "-", "book.txt", "-"]) == 2
    assert capsys.readouterr().err == "error: standard input can be read only once, but is given 2 times\n"


def test_a_lack_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("rill.train.command.hold", exhausted)
    assert main(["--out", str(tmp_path / "run"), "--corpus", "pydoc"]) == 2
    assert capsys.readouterr().err == "error: out of memory; use a smaller text, --batch, --window or --hidden\n"
