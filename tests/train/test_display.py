"""What a run prints: lines that fit 80 columns, what the run is worth, and what to type next."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rill.train.command import main
from rill.train.record.display import Display
from rill.train.record.outcome import outcome

TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("quick_training")


def printed(capsys: pytest.CaptureFixture[str], **metrics: Any) -> str:
    line = {"step": 2708, "epoch": 1.2345, "train_loss": 1.4198, "val_loss": 1.5664, "seconds": 97.3}
    Display().evaluation(line | metrics)
    return capsys.readouterr().out


def test_the_perplexity_beside_the_validation_loss_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    line = printed(capsys)
    assert line == "step  2708  epoch 1.23  loss 1.4198  validation 1.5664  perplexity 4.789  97 s\n"
    assert math.exp(1.5664) == pytest.approx(4.789, abs=1e-3)
    assert "perplexity 4.136" in printed(capsys, val_loss=None)
    assert "validation 0.0100  accuracy 98.3%  97 s" in printed(capsys, val_loss=0.01, val_accuracy=0.983)
    assert "validation 1.5664 on 4,096  perplexity 4.789" in printed(capsys, val_chars=4096)


numbers = st.floats(0, 999)


@example(10**7, 1e4, 999.0, 999.0, 1e6)
@example(10**6, 0.0, 100.0, 231.0, 1e5)
@given(st.integers(0, 10**7), st.floats(0, 1e4), numbers, st.none() | numbers, st.floats(0, 1e6))
def test_an_evaluation_fits_80_columns(step: int, epoch: float, train: float, val: float | None, time: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(Display, "line", lambda display, text: lines.append(text))
        metrics = {"step": step, "epoch": epoch, "train_loss": train, "val_loss": val, "seconds": time}
        Display().evaluation(metrics)
    assert len(lines[0]) <= 80


def last_lines(out: str) -> list[str]:
    return out.splitlines()[-4:]


def test_the_last_lines_say_what_a_run_is_worth_and_what_is_next(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--corpus", str(sentences), "--out", "runs/my run", *TINY, "--steps", "30"]) == 0
    out = capsys.readouterr().out
    summary = json.loads(Path("runs/my run/summary.json").read_text())
    assert (summary["val_whole"], summary["val_chars"]) == (True, 103)
    assert "note: this model writes little better than noise; train it for longer" in out.splitlines()
    where, worth, export, generate = last_lines(out)
    assert re.fullmatch(r"runs/my run: 30 steps in \d+ s, [\d,]+ characters/s", where)
    loss = summary["val_loss"]
    assert worth == f"best validation {loss:.4f} (perplexity {math.exp(loss):.4g}) on all 103 held-out characters"
    assert export == "next: rill export 'runs/my run' --out bundles"
    assert generate == "      rill generate --bundle 'bundles/my run'"
    assert all(len(line) <= 80 for line in out.replace(str(sentences), "text").splitlines())

    assert main(["--corpus", str(sentences), "--out", "run", *TINY, "--steps", "30", "--validation", "0"]) == 0
    loss = json.loads(Path("run/summary.json").read_text())["train_loss"]
    worth = last_lines(capsys.readouterr().out)[1]
    assert worth == f"training loss {loss:.4f} (perplexity {math.exp(loss):.4g}); nothing is held out"


def test_a_tagger_is_exported_but_generates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "tag", "--corpus", "subtraction:3", "--out", str(tmp_path / "tag"), *TINY, "--steps", "3"]
    assert main(arguments) == 0
    worth, export = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"best validation [\d.]+ \(accuracy [\d.]+%\) on all \d+ held-out steps", worth)
    assert export == f"next: rill export {tmp_path / 'tag'} --out bundles"


def test_a_part_is_called_a_part(tmp_path: Path) -> None:
    summary = {"steps": 2708, "seconds": 97.0, "chars_per_second": 55494.0, "val_loss": 1.5664}
    part = summary | {"val_whole": False, "val_chars": 32768}
    lines = outcome(Path("runs/demo"), part, 498_848, best=True)
    assert lines[0] == "runs/demo: 2,708 steps in 97 s, 55,494 characters/s"
    assert lines[1] == "best validation 1.5664 (perplexity 4.789) on 32,768 of 498,848 held out"
    assert outcome(Path("runs/demo"), part, 498_848, best=False)[1].startswith("validation 1.5664")
    folder = outcome(tmp_path / "-x y", part, 9, best=True)
    assert shlex.split(folder[2].removeprefix("next: "))[2:3] == [str(tmp_path / "-x y")]
    assert outcome(Path("-x"), part, 9, best=True)[2] == "next: rill export ./-x --out bundles"


def test_samples_are_shown_once_they_are_worth_seeing(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are always written. The last ones are always shown."""
    options = ["--steps", "300", "--evaluate-every", "10", "--sample-every", "1", "--learning-rate", "0.02"]
    assert main(["--corpus", str(sentences), "--out", str(tmp_path / "run"), *TINY, *options]) == 0
    out = capsys.readouterr().out
    assert "noise" not in out
    shown = re.findall(r"^--- step (\d+)", out, re.MULTILINE)
    written = re.findall(r"^--- step (\d+)", (tmp_path / "run" / "samples.txt").read_text(), re.MULTILINE)
    assert written == [*(str(step) for step in range(10, 300, 10)), "300"]
    assert shown == written[-len(shown) :]
    assert "10" not in shown
    assert 1 < len(shown) < len(written)
