"""`rill train` as users see it: a run from text to folder, stopped, killed, resumed, mistyped."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training import InterruptAfter, assert_same_run, lines

from rill.train.command import main
from rill.train.config import TrainingConfig
from rill.train.loop.checkpoint import Position
from rill.train.loop.interrupt import Interrupt
from rill.train.loop.optimizer import learning_rate
from rill.train.loop.trainer import Trainer
from rill.train.record.curves import draw_curves
from rill.train.record.run import load_run

ROOT = Path(__file__).parent.parent.parent
# Dropout, two layers and an epoch that does not end where the run is cut: everything a resume can get wrong.
# fmt: off
SMALL = [
    "--hidden", "24", "--layers", "2", "--dropout", "0.2", "--batch", "4", "--window", "12", "--learning-rate", "0.01",
    "--steps", "160", "--evaluate-every", "20", "--sample-every", "2", "--threads", "1", "--device", "cpu",
]
ENGLISH = ["--corpus", "pydoc", "--hidden", "64", "--window", "32", "--steps", "250", "--learning-rate", "0.02"]
TINY = ["--hidden", "8", "--batch", "4", "--window", "12", "--threads", "1", "--device", "cpu"]
# fmt: on


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(f"{n} bottles hang on wall number {n * 7 % 13}\n" for n in range(200)))
    return path


@pytest.fixture(autouse=True, scope="module")
def without_slow_files() -> Iterator[None]:
    """Train without what takes most of the time of tiny runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.train.loop.trainer.draw_curves", lambda *paths: None)
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.train.loop.trainer.draw_curves", draw_curves)
        assert main(["--corpus", str(text), "--out", str(folder), *SMALL]) == 0
    return folder


def test_the_run_folder_is_the_contracts(finished: Path) -> None:
    names = "config.json curves.png metrics.jsonl model.safetensors samples.txt summary.json trainer.pt"
    assert {path.name for path in finished.iterdir()} == {*names.split(), "trainer.previous.pt"}
    config = json.loads((finished / "config.json").read_text())
    assert set(config) == {"model", "training", "vocabulary"}
    assert config["model"]["task"] == "generate"
    assert config["model"]["layers"] == 2
    assert config["vocabulary"] == sorted(config["vocabulary"])
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(20, 161, 20))
    for m in metrics:
        fields = "step epoch chars train_loss val_loss perplexity bits_per_char chars_per_second seconds learning_rate"
        assert list(m) == fields.split()
        assert m["perplexity"] == pytest.approx(math.exp(m["train_loss"]))
        assert m["bits_per_char"] == pytest.approx(m["val_loss"] / math.log(2))
    summary = json.loads((finished / "summary.json").read_text())
    best = min(metrics, key=lambda m: m["val_loss"])
    assert summary["step"] == best["step"]
    assert summary["train_loss"] == metrics[-1]["train_loss"]
    assert summary["parameters"] == sum(weight.numel() for weight in load_run(finished).weights.values())
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "step 40, prefix ''" in (finished / "samples.txt").read_text()


def test_the_loss_falls_on_held_out_text(finished: Path) -> None:
    entries = lines(finished)
    assert entries[-1]["val_loss"] < entries[0]["val_loss"] / 2


@pytest.mark.long
def test_the_loss_falls_on_english(tmp_path: Path) -> None:
    assert main([*ENGLISH, "--out", str(tmp_path / "run")]) == 0
    entries = lines(tmp_path / "run")
    assert entries[0]["val_loss"] > entries[9]["val_loss"] > entries[19]["val_loss"]
    assert entries[-1]["val_loss"] < 2.6  # guessing by frequency alone gives 3.3


def start(text: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rill.train", "--corpus", str(text), "--out", str(folder), *SMALL]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = folder / "metrics.jsonl"
    while not (folder / "trainer.pt").exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    return process


def test_killed_and_resumed_equals_uninterrupted(text: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(text, folder)
    assert main(["--out", str(folder), "--resume"]) == 2  # the folder is held, until its holder is killed
    process.kill()
    process.communicate()
    assert not (folder / "summary.json").exists()
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_same_run(folder, finished)


def test_ctrl_c_saves_and_the_resumed_run_equals_uninterrupted(
    text: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    process = start(text, folder)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ""
    assert "continue with --resume" in output.splitlines()[-1]
    load_run(folder).build()
    assert main(["--corpus", str(text), "--out", str(folder), *SMALL, "--resume"]) == 0
    assert_same_run(folder, finished)
    assert main(["--out", str(folder), "--resume"]) == 0  # complete: nothing to do
    assert "is complete" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--corpus", "nowhere.txt"], "error: 'nowhere.txt' is neither a file"),
        ([], "error: no text to train on; give --corpus"),
        (
            ["--corpus", "TEXT", "--hidden", "0"],
            "error: hidden must be a whole number of at least 1 and at",
        ),
        (["--corpus", "TEXT", "--cell", "elman"], "error: cell must be gru, lstm or rnn, not 'elman'"),
        (["--corpus", "TEXT", "--validation", "1"], "error: validation must be a finite number"),
        (["--corpus", "TEXT", "--validation", "0.001"], "error: the held-out text has"),
        (["--corpus", "TEXT", "--batch", "5000"], "error: 6"),
        (["--corpus", "TEXT", "--prefix", "on", "ö"], "error: --prefix 'ö': character 'ö' (U+00F6) at position 0"),
        (["--corpus", "TEXT", "--device", "tpu"], "error: device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        (["--corpus", "TEXT", "--device", "cuda:99"], "error: --device cuda:99: PyTorch sees"),
        (["--corpus", "ONE"], "error: the corpus has one distinct symbol, 'a'; there is nothing to predict"),
        (["--corpus", "TEXT", "--learning-rate", "nan"], "error: learning_rate must be a finite number"),
        (
            ["--corpus", "TEXT", "--seed", str(2**64)],
            "error: seed must be a whole number of at least 0 and at most 184",
        ),
        (["--corpus", "TEXT", "--threads", "1025"], "error: threads must be a whole number of at least 0 and at most"),
        (["--corpus", "TEXT", "--hidden", "1000000"], "error: a model with layers 1, hidden 1000000 and embedding 0"),
        (
            ["--corpus", "TEXT", "--hidden", "10000000"],
            "error: hidden must be a whole number of at least 1 and at most 1048576",
        ),
        (
            ["--corpus", "TEXT", "--embedding", "9" * 30],
            "error: embedding must be a whole number of at least 0 and at most 1048576",
        ),
        (["--corpus", "caf\udce9.txt"], "error: corpus 'caf\\udce9.txt' is not UTF-8"),
        (["--corpus", "TEXT", "--min-count", "2", "--prefix", "\udcff"], "error: prefix '\\udcff' is not UTF-8"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    one = tmp_path / "one.txt"
    one.write_text("a" * 5000)
    arguments = [{"TEXT": str(text), "ONE": str(one)}.get(argument, argument) for argument in arguments]
    folder = tmp_path / "run"
    assert main([*arguments, "--out", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(complaint)
    assert errors.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_of_other_things_is_left_alone(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: list[str]
) -> None:
    (tmp_path / "letter.odt").write_text("dear")
    assert main(["--corpus", str(text), "--out", str(tmp_path), *resume]) == 2
    assert "is not empty and is not a run folder: it has no config.json; give another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.odt"]


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("--hiden 8", "error: unrecognized arguments: --hiden 8; did you mean --hidden?"),
        ("--learningrate=0.1", "did you mean --learning-rate?"),
        ("--cell lstn", "error: cell must be gru, lstm or rnn, not 'lstn'; did you mean lstm?"),
        ("--recipe timemachine-gro", "or give the path of a .toml file; did you mean timemachine-gru?"),
        ("--zzz", "error: unrecognized arguments: --zzz\n"),
        ("--cell LSTN", "did you mean lstm?"),
        ("--Hidden 8", "did you mean --hidden?"),
        (
            "--corpus pydok",
            "nor a named corpus (shakespeare, sanguo, pydoc, moses, moses:test, moses:scaffolds); did you mean pydoc?",
        ),
        ("--corpus tests/train/test_comand.py", "did you mean test_command.py?"),
    ],
)
def test_a_mistyped_option_or_value_gets_a_suggestion(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, suggestion: str
) -> None:
    try:
        status: object = main(["--corpus", str(text), "--out", str(tmp_path / "run"), *arguments.split()])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert suggestion in capsys.readouterr().err


LIGHT = """
import sys, time
started = time.perf_counter()
from rill.train.command import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
seconds = time.perf_counter() - started
print(status, seconds, *{"torch", "numpy", "rich", "matplotlib"} & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("--steps four", 2),
        ("--out run --corpus pydoc --hidden 0", 2),
        ("--out run --corpus pydok", 2),
        ("--out run --corpus subtracton:4 --task tag", 2),
        ("reprot", 2),
        ("--out FINISHED --resume", 0),
    ],
)
def test_help_mistakes_and_complete_runs_need_no_pytorch(finished: Path, arguments: str, status: int) -> None:
    words = [str(finished) if word == "FINISHED" else word for word in arguments.split()]
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    code, seconds, *loaded = done.stderr.splitlines()[-1].split()
    assert (int(code), loaded) == (status, [])
    assert float(seconds) < 2  # 0.1 on an idle machine
    if arguments == "--help":
        assert "(default 256)" in done.stdout
        assert "rill train" in done.stdout.splitlines()[0]


def test_a_mistyped_subcommand_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reprot", "runs/x"])
    assert "unrecognized arguments: reprot runs/x; did you mean report?" in capsys.readouterr().err


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["--help"], ["report", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_world_size_that_is_not_torchruns_is_ignored(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    assert main(["--corpus", str(sentences), "--out", str(tmp_path / "run"), *TINY, "--steps", "1"]) == 0


def test_lengths_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["--out", str(tmp_path / "run"), "--steps", "3", "--epochs", "2"])
    assert exit_status.value.code == 2
    assert "not allowed with argument --steps" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(text: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "model.safetensors").read_bytes()
    assert main(["--corpus", str(text), "--out", str(finished)]) == 2
    errors = capsys.readouterr().err
    assert "already holds a complete run; choose another --out, or train it further: --from " in errors
    assert (finished / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def stopped_once(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted at step 5; a test that changes it must restore it."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(5))
        assert main(["--corpus", str(text), "--out", str(folder), *SMALL]) == 130
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def test_resume_refuses_another_model_or_text(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(stopped), "--resume", "--hidden", "25"]) == 2
    assert "was started with hidden 24, not 25" in capsys.readouterr().err
    assert main(["--out", str(stopped), "--resume", "--epochs", "2"]) == 2
    assert "was started with steps 160, not None" in capsys.readouterr().err
    corpus = Path(json.loads((stopped / "config.json").read_text())["training"]["corpus"][0])
    original = corpus.read_text()
    try:
        corpus.write_text(original + "more")
        assert main(["--out", str(stopped), "--resume"]) == 2
    finally:
        corpus.write_text(original)
    assert "is not the one that" in capsys.readouterr().err


def test_resume_names_a_damaged_checkpoint(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "trainer.pt").write_bytes((stopped / "trainer.pt").read_bytes()[:-100])
    assert main(["--out", str(stopped), "--resume"]) == 2
    assert "trainer.pt is damaged" in capsys.readouterr().err


def position(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["position"].update(values)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (position(state=(torch.zeros(2, 3, 24),)), "is damaged: the state of its position is not a float32 tensor of"),
        (position(state=3), "is damaged: the state of its position is not 1 tensors"),
        (position(state=(torch.zeros(2, 4, 24),) * 2), "is damaged: the state of its position is not 1 tensors"),
        (position(state=(torch.full((2, 4, 24), torch.nan),)), "is damaged: the state of its position holds NaN"),
        (position(state=None), "is damaged: the state of its position is not 1 tensors"),
        (position(step="x"), "is damaged: its position has step 'x'"),
        (position(step=-5), "is damaged: its position has step -5"),
        (position(step=0), "is damaged: its position has a state where none is carried"),
        (position(step=1, state=None, kept_step=9), "is damaged: its position contradicts itself"),
        (position(metrics_bytes=2.5), "is damaged: its position has metrics_bytes 2.5"),
        (position(seconds=math.nan), "is damaged: its position has seconds nan"),
        (position(more=1), "is damaged: its position lacks a field, or has one too many"),
        (lambda c: c["position"].pop("step"), "is damaged: its position lacks a field, or has one too many"),
        (lambda c: c.update(position=None), "is damaged (TypeError)"),
        (lambda c: c["model"]["linear.bias"].fill_(torch.nan), "is damaged: linear.bias holds NaN or infinite values"),
        (lambda c: c["model"].pop("linear.bias"), "is damaged: it lacks linear.bias"),
        (lambda c: c.update(model=[]), "is damaged (AttributeError)"),
        (lambda c: c["optimizer"]["state"].pop(0), "is damaged: its optimizer state is not that of the model's"),
        (lambda c: c["optimizer"]["state"][0].pop("step"), "is damaged: its optimizer state is not that of adamw"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.ones(2)), "is damaged: its optimizer's exp_avg is"),
        (lambda c: c["optimizer"]["state"][0]["exp_avg_sq"].neg_(), "is damaged: its optimizer state has negative"),
        (lambda c: c["optimizer"]["state"][0]["exp_avg"].fill_(torch.inf), "is damaged: its optimizer's exp_avg holds"),
        (lambda c: c.update(random=torch.zeros(3)), "is damaged (TypeError)"),
        (lambda c: c.update(format=1), "has format 1; this version of Rill reads 3"),
        (lambda c: c.update(config="0" * 64), "belongs to another run than"),
    ],
)
def test_resume_names_wrong_contents_of_a_checkpoint(
    stopped_once: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    path = stopped_once / "trainer.pt"
    before = path.read_bytes()
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    try:
        assert main(["--out", str(stopped_once), "--resume"]) == 2
    finally:
        path.write_bytes(before)
    errors = capsys.readouterr().err
    assert f"trainer.pt {complaint}" in errors
    assert errors.count("\n") == 1


def test_resume_refuses_the_checkpoint_of_another_run(
    stopped: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    monkeypatch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(5))
    assert main(["--corpus", str(text), "--out", str(other), *SMALL, "--seed", "1"]) == 130
    (stopped / "trainer.pt").write_bytes((other / "trainer.pt").read_bytes())
    assert main(["--out", str(stopped), "--resume"]) == 2
    assert "trainer.pt belongs to another run than" in capsys.readouterr().err


def test_device_threads_and_the_corpus_name_may_change_on_resume(stopped: Path, text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    assert main(["--out", str(stopped), "--resume", "--device", "auto", "--threads", "0", "--corpus", str(copy)]) == 0


def test_divergence_stops_and_keeps_the_last_good_checkpoint(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer._step

    def poisoned(trainer: Trainer, done: float) -> None:
        if trainer.position.step == 30:
            with torch.no_grad():
                trainer.model.linear.bias[0] = torch.nan
        step(trainer, done)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    assert main(["--out", str(stopped), "--resume"]) == 2
    assert "error: the loss diverged at step 31" in capsys.readouterr().err
    checkpoint = torch.load(stopped / "trainer.pt", weights_only=True)
    assert Position(**checkpoint["position"]).step == 20
    load_run(stopped)


@pytest.mark.parametrize("where", ["evaluation", "checkpoint", "interrupt"])
def test_diverged_weights_are_never_saved(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    steps = "1"
    if where == "checkpoint":
        steps = "2"
        monkeypatch.setattr("rill.train.loop.trainer.CHECKPOINT_SECONDS", -1.0)
    if where == "interrupt":
        monkeypatch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(1))
    folder = tmp_path / "run"
    options = ["--validation", "0", "--steps", steps, "--evaluate-every", "5", "--learning-rate", "1e40"]
    assert main(["--corpus", str(text), "--out", str(folder), *TINY, *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: the weights diverged at step 1; start again in another --out with a smaller")
    assert errors.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("resumed", [False, True])
def test_however_short_the_time_there_is_a_step_and_a_model(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    folder = tmp_path / "run"
    arguments = ["--corpus", str(text), "--out", str(folder), "--max-minutes", "1e-9", *TINY]
    if resumed:  # what is resumed has spent its time
        with monkeypatch.context() as patch:
            patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(0))
            assert main(arguments) == 130
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 1
    load_run(folder)


def test_output_that_cannot_be_encoded_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "greek.txt"
    corpus.write_text("μῆνιν ἄειδε θεὰ\n" * 50)
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "ascii", write_through=True))
    options = ["--steps", "4", "--evaluate-every", "1", "--sample-every", "1", "--prefix", "θεὰ"]
    assert main(["--corpus", str(corpus), "--out", str(tmp_path / "run"), *TINY, *options]) == 0
    assert b"\n???" in output.getvalue()
    assert "\nθεὰ" in (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")


def test_training_continues_when_the_reader_of_its_output_leaves(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        options = ["--steps", "4", "--evaluate-every", "1", "--sample-every", "1"]
        assert main(["--corpus", str(text), "--out", str(tmp_path / "run"), *TINY, *options]) == 0
    assert len(lines(tmp_path / "run")) == 4
    assert capsys.readouterr().err == ""


def test_an_evaluation_is_in_the_checkpoint_before_it_is_printed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    saved = []

    def printed(display: object, metrics: dict[str, float]) -> None:
        position = torch.load(folder / "trainer.pt", weights_only=True)["position"]
        sizes = [(folder / name).stat().st_size for name in ("metrics.jsonl", "samples.txt")]
        assert [position["metrics_bytes"], position["samples_bytes"]] == sizes
        saved.append(position["step"])

    monkeypatch.setattr("rill.train.record.display.Display.evaluation", printed)
    options = ["--steps", "4", "--evaluate-every", "2", "--sample-every", "1"]
    assert main(["--corpus", str(text), "--out", str(folder), *TINY, *options]) == 0
    assert saved == [2, 4]


def test_an_interrupt_that_comes_too_late_says_that_the_run_is_complete(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rill.train.loop.trainer.draw_curves", lambda *paths: signal.raise_signal(signal.SIGINT))
    assert main(["--corpus", str(text), "--out", str(tmp_path / "run"), "--steps", "2", *TINY]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"interrupted too late: {tmp_path / 'run'} is complete"
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(steps=1000, learning_rate=0.2)
    rates = [learning_rate(config, step, step / 1000) / 0.2 for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[:100] == sorted(rates[:100])
    assert rates[99] > 0.95
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_under_a_time_limit_the_warm_up_takes_a_share_of_the_time() -> None:
    config = TrainingConfig(max_minutes=1.0, learning_rate=0.2, schedule="constant")
    slow = [learning_rate(config, step, step / 100) / 0.2 for step in range(100)]  # 100 steps in all
    assert slow[:6] == pytest.approx([0.01, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert slow[5:] == [1.0] * 95
    quick = [learning_rate(config, step, step / 1e6) / 0.2 for step in (0, 49, 99, 1000)]
    assert quick == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert learning_rate(TrainingConfig(max_minutes=1.0, warmup=0, learning_rate=0.2), 0, 0.0) == 0.2


def test_a_constant_learning_rate_warms_up_only_on_request() -> None:
    config = TrainingConfig(steps=10, learning_rate=100.0, schedule="constant", warmup=0)
    assert [learning_rate(config, step, step / 10) for step in range(10)] == [100.0] * 10


def test_a_second_signal_has_its_usual_effect_unless_it_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("rill.train.loop.interrupt.time.monotonic", lambda: now)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # torchrun passes on what every process got
            assert interrupt.requested == signal.SIGINT
            now += 2
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
