"""Runs that are cut anywhere and resumed, and runs that start from the weights of another run."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import SENTENCES, make_run, save_run
from servers import ROOT
from training import InterruptAfter, assert_same_run, lines

from rill.train.command import main
from rill.train.loop.start import copy_weights, vocabulary_from
from rill.train.loop.trainer import Trainer
from rill.train.nets.model import CharacterModel
from rill.train.record.files import append_file
from rill.train.record.run import load_run
from rill.vocabulary import UNKNOWN

TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu"]
# Six evaluations, a sample after every second one, dropout, and epochs of 30 steps, which end between evaluations.
RUN = [*TINY, "--layers", "2", "--dropout", "0.1", "--steps", "42", "--evaluate-every", "7", "--sample-every", "2"]
pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture(scope="module")
def whole(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["--corpus", str(sentences), "--out", str(folder), *RUN]) == 0
    return folder


def resume_cut(monkeypatch: pytest.MonkeyPatch, checks: int, *arguments: object) -> int:
    """`rill train ARGUMENTS --resume`, interrupted after so many checks for an interrupt."""
    with monkeypatch.context() as patch:
        patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(checks))
        return main([*map(str, arguments), "--resume"])


def checkpoint(folder: Path, name: str = "trainer.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


class Killed(BaseException):
    """An exception that the program does not catch, as if the process had ended."""


def killed_at_once(*arguments: object) -> None:
    raise Killed


# Interruptions


@pytest.mark.parametrize(
    "options",
    [
        "--cell gru",
        "--cell gru --reset before",
        "--cell lstm",
        "--cell lstm --embedding 5 --layers 2 --dropout 0.2",
        "--cell rnn",
        "--residual --layers 3 --dropout 0.2",
        "--cell lstm --scratch",
        "--optimizer sgd --momentum 0.9 --learning-rate 0.5",
        "--optimizer sgd --schedule constant",
        "--optimizer rmsprop",
        "--optimizer rmsprop --momentum 0.9",
        "--accumulate 2",
        "--accumulate 4 --sampling random --dropout 0.2",
        "--evaluate-epochs 1 --epochs 2 --batch 16",
        "--patience 1 --learning-rate 2",
        "--keep last --learning-rate 2",
        "--precision bf16 --layers 2",
        "--initialization orthogonal --clip 0",
        "--sampling random --layers 2 --dropout 0.1",
        "--validation 0 --layers 2 --dropout 0.1",
        "--epochs 1 --layers 2 --dropout 0.1",
    ],
)
def test_a_run_cut_anywhere_ends_the_same(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    arguments = ["--corpus", str(sentences), *TINY, "--warmup", "4", *options.split()]
    if "--epochs" not in arguments:
        arguments += ["--steps", "11", "--evaluate-every", "3"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    for checks in (1, 5):
        assert resume_cut(monkeypatch, checks, *arguments, "--out", tmp_path / "cut") == 130
    assert main(["--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    states = [checkpoint(tmp_path / name)["optimizer"]["state"] for name in ("cut", "whole")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("cut", "whole")]
    for name in ("val_loss", "step", "steps", "train_loss", "chars"):
        assert summaries[0][name] == summaries[1][name]


def test_patience_is_remembered(sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has stalled, cut before it wrote its summary, does not train on."""
    arguments = ["--corpus", sentences, *TINY, "--steps", "60", "--evaluate-every", "2", "--patience", "2"]
    arguments += ["--learning-rate", "9", "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", killed_at_once)
        with pytest.raises(Killed):
            main([*map(str, arguments)])
    step = checkpoint(tmp_path / "run")["position"]["step"]
    assert step < 60
    assert main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == step


KILLER = """
import os, random, signal, sys, time
import torch
import rill.train.loop.train, rill.train.loop.trainer
from rill.train.command import main
from rill.train.loop.interrupt import Interrupt

class AtOnce(Interrupt):
    def __enter__(self):
        self.requested = signal.SIGINT
        return self
    def __exit__(self, *error):
        pass

torch.set_num_threads(1)
rill.train.loop.trainer.SAMPLE_LENGTH = 5
rill.train.loop.trainer.draw_curves = lambda *paths: None
arguments = sys.argv[2:]
rill.train.loop.train.Interrupt = AtOnce  # a run without steps, to import everything
main([*arguments, "--out", sys.argv[1] + " without steps"])
rill.train.loop.train.Interrupt = Interrupt
arguments += ["--out", sys.argv[1], "--resume"]
moments = random.Random(0)
kills = 0
while kills < 8:
    child = os.fork()
    if child == 0:
        os._exit(main(arguments))
    time.sleep(moments.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    kills += 1
print(kills, "kills", file=sys.stderr)
sys.exit(main(arguments))
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, to load PyTorch once")
def test_a_run_killed_many_times_ends_the_same(sentences: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLER, str(folder), "--corpus", str(sentences), *RUN]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stderr.split()[0]) > 0, process.stderr
    assert_same_run(folder, whole)


def dying(operation: Callable[..., Any], times: int, last_words: Callable[..., Any] | None = None) -> Any:
    """`operation`, which works `times` times; the next call runs `last_words` and then kills the program."""
    calls = iter(range(times))

    def operate(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            if last_words:
                last_words(*arguments, **options)
            raise Killed
        return operation(*arguments, **options)

    return operate


def append_half(path: Path, data: bytes) -> None:
    append_file(path, data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "operation", "last_words", "count"),
    [
        ("pathlib.Path.replace", Path.replace, None, 10),  # config, 3 × (weights, checkpoint), 2 × previous, summary
        ("rill.train.loop.trainer.append_file", append_file, append_half, 5),  # 3 lines, 2 samples
    ],
)
def test_a_run_killed_at_any_operation_on_a_file_ends_the_same(
    sentences: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    operation: Callable[..., Any],
    last_words: Callable[..., Any] | None,
    count: int,
) -> None:
    run = ["--corpus", str(sentences), *RUN, "--steps", "9", "--evaluate-every", "3", "--resume"]
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    killed = 0
    for times in range(99):
        arguments = [*run, "--out", str(tmp_path / str(times))]
        try:
            with monkeypatch.context() as patch:
                patch.setattr(name, dying(operation, times, last_words))
                main(arguments)
            break
        except Killed:
            killed += 1
        assert main(arguments) == 0
        assert_same_run(tmp_path / str(times), tmp_path / "whole")
    assert killed == count


# The newest good checkpoint


@pytest.fixture(scope="module")
def stopped_once(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN with checkpoints at steps 14 and 17."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        assert resume_cut(patch, 17, "--corpus", sentences, "--out", folder, *RUN) == 130
    assert checkpoint(folder)["position"]["step"] == 17
    assert checkpoint(folder, "trainer.previous.pt")["position"]["step"] == 14
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def change(path: Path, *keys: str, value: object) -> None:
    content = entry = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    torch.save(content, path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip the last bit of one weight."""
    weight = torch.load(path, weights_only=True)["model"]["linear.bias"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weight)] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(9000)),
    "a text": lambda path: path.write_text("step 17"),
    "another object": lambda path: torch.save([1, 2], path),
    "a wrong value": lambda path: change(path, "position", "step", value=-1),
    "a NaN": lambda path: change(path, "model", "linear.bias", value=torch.full((24,), torch.nan)),
    "no state": lambda path: change(path, "position", "state", value=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_found(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    DAMAGES[damage](stopped / "trainer.pt")
    assert main(["--out", str(stopped), "--resume"]) == 0
    notice = capsys.readouterr().out.splitlines()[0]
    assert notice.startswith(f"{stopped / 'trainer.pt'} is damaged")
    assert notice.endswith(f"; continuing from {stopped / 'trainer.previous.pt'}, step 14")
    assert_same_run(stopped, whole)


def test_the_checkpoint_before_a_missing_one_is_found(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "trainer.pt").unlink()
    assert main(["--out", str(stopped), "--resume"]) == 0
    expected = f"{stopped / 'trainer.pt'} is missing; continuing from {stopped / 'trainer.previous.pt'}, step 14"
    assert capsys.readouterr().out.splitlines()[0] == expected
    assert_same_run(stopped, whole)


def test_a_damaged_checkpoint_before_a_good_one_does_not_matter(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(stopped / "trainer.previous.pt")
    assert main(["--out", str(stopped), "--resume"]) == 0
    assert "is damaged" not in capsys.readouterr().out
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("missing", [False, True])
def test_where_no_checkpoint_is_good_both_are_named(
    stopped: Path, capsys: pytest.CaptureFixture[str], missing: bool
) -> None:
    truncate(stopped / "trainer.previous.pt")
    (stopped / "trainer.pt").unlink() if missing else flip(stopped / "trainer.pt")
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    assert main(["--out", str(stopped), "--resume"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"error: {stopped / 'trainer.pt'} is {'missing' if missing else 'damaged'}" in errors
    assert f"; {stopped / 'trainer.previous.pt'} is damaged" in errors
    assert errors.endswith("; start again with another --out\n")
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


@pytest.mark.parametrize("renames", [1, 2])
def test_a_damaged_checkpoint_never_takes_the_good_ones_place(
    stopped: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Kill the run while it puts the first checkpoint after the damage into place; the weights are renamed first."""
    truncate(stopped / "trainer.pt")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace, renames))
        with pytest.raises(Killed):
            main(["--out", str(stopped), "--resume"])
    assert checkpoint(stopped, "trainer.previous.pt")["position"]["step"] == 14
    assert main(["--out", str(stopped), "--resume"]) == 0
    assert_same_run(stopped, whole)


# A full disk

FULL = Path("/dev/full")  # where every write meets a full disk
FILES = ["trainer.pt", "model.safetensors", "metrics.jsonl", "samples.txt", "summary.json"]


@pytest.mark.skipif(not FULL.exists(), reason=f"no {FULL} here")
@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(
    sentences: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    folder = tmp_path / "run"
    assert resume_cut(monkeypatch, 5, "--corpus", sentences, "--out", folder, *RUN) == 130
    appended = name in ("metrics.jsonl", "samples.txt")
    full = folder / (name if appended else f"{name}.tmp")
    full.symlink_to(FULL)
    assert main(["--out", str(folder), "--resume"]) == 2
    errors = capsys.readouterr().err
    assert errors == f"error: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: '{folder / name}'\n"
    assert full.is_symlink() == appended
    full.unlink(missing_ok=True)
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same_run(folder, whole)


@pytest.mark.skipif(not FULL.exists(), reason=f"no {FULL} here")
def test_a_run_that_finds_the_disk_full_at_once_can_be_started_again(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json.tmp").symlink_to(FULL)
    arguments = ["--corpus", str(sentences), "--out", str(folder), *TINY, "--steps", "2"]
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(f": '{folder / 'config.json'}'\n")
    assert main(arguments) == 0


@pytest.mark.skipif(not FULL.exists(), reason=f"no {FULL} here")
def test_training_continues_when_its_output_goes_to_a_full_disk(
    sentences: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w", encoding="utf-8") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert main(["--corpus", str(sentences), "--out", str(tmp_path / "run"), *RUN]) == 0
    assert_same_run(tmp_path / "run", whole)
    assert capsys.readouterr().err == ""


# Runs that start from the weights of another run


@pytest.fixture(scope="module")
def base(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the sentences well."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    options = ["--steps", "250", "--learning-rate", "0.03", "--hidden", "16"]
    assert main(["--corpus", str(sentences), "--out", str(folder), *TINY, *options]) == 0
    return folder


@pytest.fixture
def similar(tmp_path: Path) -> Path:
    """The same words, and characters that `base` does not know."""
    path = tmp_path / "similar.txt"
    path.write_text(("The time traveller, " + SENTENCES) * 8)
    return path


def test_it_starts_where_the_other_run_ended(base: Path, sentences: Path, tmp_path: Path) -> None:
    halves = tmp_path / "halves.txt"
    halves.write_text((SENTENCES[50:] + SENTENCES[:50]) * 10)
    once = ["--corpus", str(halves), "--steps", "1", *TINY, "--hidden", "16", "--initialization", "normal"]
    assert main([*once, "--out", str(tmp_path / "scratch")]) == 0
    assert main([*once, "--out", str(tmp_path / "run"), "--from", str(base)]) == 0
    assert load_run(tmp_path / "run").vocabulary == load_run(base).vocabulary
    assert lines(tmp_path / "scratch")[0]["train_loss"] > 3
    assert lines(tmp_path / "run")[0]["train_loss"] < 1.5


def test_the_model_is_the_other_runs_but_for_dropout(base: Path, sentences: Path, tmp_path: Path) -> None:
    options = ["--steps", "1", "--dropout", "0.3", "--batch", "4", "--window", "8", "--device", "cpu"]
    assert main(["--corpus", str(sentences), "--from", str(base), "--out", str(tmp_path / "run"), *options]) == 0
    model = load_run(tmp_path / "run").model
    assert (model.hidden, model.dropout) == (16, 0.3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--hidden 8", "BASE has hidden 16, not 8"),
        ("--cell lstm", "BASE has cell 'gru', not 'lstm'"),
        ("--embedding 3", "BASE has embedding 0, not 3"),
        ("--task tag", "BASE has task 'generate', not 'tag'"),
        (
            "--from nowhere",
            "nowhere is not a run folder: no such folder; train one with rill train --out nowhere",
        ),
        ("--from TAGGER", "TAGGER is a tagger; --from works only with runs that predict the next character"),
        (
            "--corpus SIMILAR",
            "BASE was not trained on 2 of the text's distinct characters: character 'T' (U+0054) at position 0 is not"
            " in the model's vocabulary; give --extend-vocabulary to add them",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    base: Path,
    sentences: Path,
    similar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    complaint: str,
) -> None:
    tagger = tmp_path / "tagger"
    if "TAGGER" in options:
        assert main(["--task", "tag", "--corpus", "subtraction:2", "--out", str(tagger), "--steps", "1"]) == 0
    names = {"BASE": str(base), "SIMILAR": str(similar), "TAGGER": str(tagger)}
    words = [names.get(word, word) for word in options.split()]
    arguments = ["--corpus", str(sentences), "--from", str(base), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main([*arguments, *words]) == 2
    for name, path in names.items():
        complaint = complaint.replace(name, path)
    assert capsys.readouterr().err == f"error: {complaint}\n"
    assert not (tmp_path / "run").exists()


def test_extending_a_vocabulary_takes_a_run_to_extend(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--corpus", str(sentences), "--out", str(tmp_path / "run"), *TINY, "--extend-vocabulary"]) == 2
    assert "error: --extend-vocabulary is for a run that continues another one on other text" in capsys.readouterr().err


SYMBOLS = {
    "sorted": tuple("bdfh"),
    "shuffled": tuple("hbfd"),
    "unknown first": (UNKNOWN, *"bdfh"),
    "unknown inside": ("h", "b", UNKNOWN, "f", "d"),
}


def test_a_vocabulary_is_extended_by_what_it_lacks() -> None:
    def extended(symbols: tuple[str, ...], text: str, min_count: int = 1) -> tuple[str, ...]:
        return vocabulary_from(make_run(symbols), text, min_count, extend=True).symbols

    assert extended(("h", "b", "f", "d"), "abcba") == tuple("abcdfh")
    assert extended(("h", "b", "f", "d"), "bbb") == tuple("bdfh")
    assert extended(("h", "b", UNKNOWN, "f"), "abca") == (UNKNOWN, *"abcfh")
    assert extended(("h", "b"), "aac", min_count=2) == (UNKNOWN, *"abh")
    run = make_run(("h", "b", UNKNOWN, "f"))
    assert vocabulary_from(run, "anything", 1, extend=False) is run.vocabulary


@pytest.mark.parametrize(
    "shape", [{}, {"embedding": 5}, {"cell": "lstm", "layers": 2}, {"residual": True, "layers": 2}]
)
@pytest.mark.parametrize("order", SYMBOLS)
def test_old_symbols_keep_their_weights(order: str, shape: dict[str, Any]) -> None:
    run = make_run(SYMBOLS[order], hidden=6, **shape)
    vocabulary = vocabulary_from(run, "abcdefghi", 1, extend=True)
    torch.manual_seed(3)
    model, drawn = CharacterModel(run.model, len(vocabulary)), CharacterModel(run.model, len(vocabulary))
    drawn.load_state_dict(model.state_dict())
    copy_weights(model, vocabulary, run)
    by_row = {"linear.weight", "linear.bias", "embedding.weight"}
    by_column = set() if run.model.embedding else {"rnn.weight_ih_l0"}
    for name, weight in model.state_dict().items():
        if name not in by_row | by_column:
            assert torch.equal(weight, run.weights[name])
            continue
        new, old, first = (
            w.mT if name in by_column else w for w in (weight, run.weights[name], drawn.state_dict()[name])
        )
        for index, symbol in enumerate(vocabulary.symbols):
            before = run.vocabulary.id_of(symbol)
            assert torch.equal(new[index], first[index] if before is None else old[before]), (name, symbol)
    # A text of old symbols means the same to both.
    text = "bfdhhdb"
    expected, _ = run.build()(torch.tensor([run.vocabulary.encode(text)]))
    logits, _ = model.eval()(torch.tensor([vocabulary.encode(text)]))
    ids = [vocabulary.id_of(symbol) for symbol in run.vocabulary.symbols]
    torch.testing.assert_close(logits[..., ids], expected, rtol=1e-5, atol=1e-5)


def test_unseen_characters_are_unknown_where_there_is_that(similar: Path, sentences: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    assert main(["--corpus", str(sentences), "--out", str(known), *TINY, "--steps", "1", "--min-count", "2"]) == 0
    arguments = ["--corpus", str(similar), "--from", str(known), "--steps", "1", *TINY]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert load_run(tmp_path / "a").vocabulary == load_run(known).vocabulary
    assert main([*arguments, "--out", str(tmp_path / "b"), "--extend-vocabulary"]) == 0
    assert load_run(tmp_path / "b").vocabulary.symbols == (UNKNOWN, *sorted(set(SENTENCES) | set("T,")))


def test_it_can_be_cut_and_resumed(
    base: Path, similar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It starts from the other run again before its first checkpoint, and from the checkpoint afterwards."""
    start = Path(shutil.copytree(base, tmp_path / "start"))
    arguments = ["--corpus", str(similar), *TINY, "--hidden", "16", "--steps", "8", "--evaluate-every", "2"]
    arguments += ["--from", str(start), "--extend-vocabulary"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", killed_at_once)
        with pytest.raises(Killed):
            main([*arguments, "--out", str(cut)])
    assert [path.name for path in cut.iterdir()] == ["config.json"]
    # The run that it starts from must be there, or a copy of it; no other run is accepted.
    moved = start.rename(tmp_path / "moved")
    assert main(["--out", str(cut), "--resume"]) == 2
    assert f"error: {start} is not a run folder: no such folder" in capsys.readouterr().err
    for other in (make_run(load_run(moved).vocabulary.symbols, hidden=9), make_run(hidden=16)):
        folder = save_run(other, tmp_path / f"other {other.model.hidden}")
        assert main(["--out", str(cut), "--resume", "--from", str(folder)]) == 2
        complaint = f"error: {folder} has another model or vocabulary than the run that {cut} was started from\n"
        assert capsys.readouterr().err == complaint
    assert resume_cut(monkeypatch, 3, "--out", cut, "--from", moved) == 130
    shutil.rmtree(moved)
    assert resume_cut(monkeypatch, 2, "--out", cut) == 130
    assert main([*arguments, "--out", str(cut), "--resume"]) == 0
    assert_same_run(cut, tmp_path / "whole")
