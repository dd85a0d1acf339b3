"""`--max-minutes` on a machine that the tests make up: work takes processor time, and other programs stretch it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rill.train.command import main
from rill.train.loop.process_age import process_age
from rill.train.loop.time_limit import STEPS_BETWEEN
from rill.train.loop.trainer import Trainer
from rill.train.text.held_out import HeldOutText, Measurement

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick_training")
TINY = ["--hidden", "8", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu"]
WINDOW = 256  # characters that are measured at a time
Load = Callable[[float], float]


class Machine:
    """Seconds and processor seconds; `load` is the number of seconds that a second's work takes at a time."""

    def __init__(self, load: Load) -> None:
        self.now = self.cpu = self.evaluating = 0.0
        self.load = load

    def work(self, seconds: float) -> None:
        while seconds > 0:  # the load may change in between
            done = min(seconds, 0.05)
            self.cpu += done
            self.now += done * self.load(self.now)
            seconds -= done


class Costs:
    """What a run's parts take on one free core, in seconds."""

    def __init__(
        self, loading: float = 2.3, step: float = 0.15, part: float = 0.03, parts: int = 40, curves: float = 1.0
    ) -> None:
        self.loading, self.step, self.part, self.parts, self.curves = loading, step, part, parts, curves


def run(
    patch: pytest.MonkeyPatch, text: Path, folder: Path, minutes: float, load: Load, costs: Costs, *options: str
) -> Machine:
    """Train on a machine of that load; check the promises that every run keeps."""
    machine = Machine(load)
    step, evaluate = Trainer._step, Trainer._evaluate

    def measure(
        held_out: HeldOutText, model: Any, limit: int | None = None, stop: Callable[[], bool] | None = None
    ) -> Measurement:
        count = costs.parts if limit is None else max(1, limit // WINDOW)
        began = machine.now
        measured = 0
        while measured < count:
            measured += 1
            machine.work(costs.part * min(limit or WINDOW, WINDOW) / WINDOW)
            if stop is not None and stop():
                break
        machine.evaluating += machine.now - began
        return Measurement(2.5 - 0.001 * machine.now, measured * min(limit or WINDOW, WINDOW))

    def sample(*arguments: Any, stop: Callable[[], bool]) -> str:
        for _ in range(200):
            machine.work(0.0005)
            if stop():
                break
        return "text"

    def evaluated(trainer: Trainer, *arguments: Any) -> None:
        evaluate(trainer, *arguments)
        machine.work(0.02)  # files
        machine.evaluating += 0.02 * machine.load(machine.now)

    def stepped(trainer: Trainer, done: float) -> None:
        machine.work(costs.step)
        step(trainer, done)

    monotonic = SimpleNamespace(monotonic=lambda: machine.now, thread_time=lambda: machine.cpu)
    patch.setattr("rill.train.loop.trainer.time", monotonic)
    patch.setattr("rill.train.loop.train.time", monotonic)
    patch.setattr("rill.train.command.time", monotonic)
    patch.setattr(HeldOutText, "measure", measure)
    patch.setattr(HeldOutText, "part", lambda held_out, limit: max(1, limit // WINDOW) * min(limit, WINDOW))
    patch.setattr(HeldOutText, "characters", property(lambda held_out: costs.parts * WINDOW))
    patch.setattr("rill.train.loop.trainer.generate", sample)
    patch.setattr("rill.train.loop.trainer.draw_curves", lambda *paths: machine.work(costs.curves))
    for name, replacement in (("_step", stepped), ("_evaluate", evaluated)):
        patch.setattr(Trainer, name, replacement)
    build = Trainer.__init__

    def loaded(trainer: Trainer, *arguments: Any) -> None:
        machine.work(costs.loading)
        *common, _elapsed, check_folder = arguments
        build(trainer, *common, machine.now, check_folder)

    patch.setattr(Trainer, "__init__", loaded)
    arguments = ["--corpus", str(text), "--out", str(folder), *TINY, "--max-minutes", str(minutes), *options]
    assert main(arguments) == 0
    machine.work(0.3)  # the end of the process
    assert machine.now <= 1.1 * minutes * 60 + 5
    return machine


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


LOADS: dict[str, Load] = {
    "quiet": lambda now: 1.0,
    "another program on the core": lambda now: 2.0,
    "many programs": lambda now: 6.0,
    "from half way on": lambda now: 1.0 if now < 20 else 6.0,
    "until half way": lambda now: 6.0 if now < 20 else 1.0,
    "at the very end": lambda now: 1.0 if now < 36 else 6.0,
    "in waves": lambda now: 1.0 if now % 4 < 2 else 5.0,
}


@pytest.mark.parametrize("load", LOADS)
def test_a_run_ends_in_time_and_evaluates_for_a_tenth_of_it(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str
) -> None:
    machine = run(monkeypatch, sentences, tmp_path / "run", 0.65, LOADS[load], Costs())
    assert machine.now > 0.85 * 39  # the time is used, too
    assert machine.evaluating < 0.1 * 39 + 1
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    between = [b - a for a, b in zip([0, *steps], steps, strict=False)][:-1]
    assert all(count >= STEPS_BETWEEN for count in between)
    result = summary(tmp_path / "run")
    if load == "quiet":
        assert (result["val_whole"], result["val_chars"]) == (True, 40 * WINDOW)
        assert 6 <= len(steps) <= 20
    if load == "many programs":
        assert (result["val_whole"], result["val_chars"]) == (False, 2 * WINDOW)


@pytest.mark.parametrize("load", [1.0, 3.0, 6.0])
def test_short_runs_end_in_time(sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    run(monkeypatch, sentences, tmp_path / "run", 0.25, lambda now: load, Costs(step=0.3))
    assert summary(tmp_path / "run")["steps"] >= (1 if load > 5 else 3)


@pytest.mark.parametrize("step", [1.0, 4.0, 9.0])
def test_slow_steps_do_not_make_a_run_late(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """A large model: measuring the usual part would take as long as eight steps."""
    run(monkeypatch, sentences, tmp_path / "run", 0.5, lambda now: 1.0, Costs(step=step, part=step))
    entries = metrics(tmp_path / "run")
    assert len(entries) <= 1 + entries[-1]["step"] // STEPS_BETWEEN
    result = summary(tmp_path / "run")
    assert result["steps"] >= 15 / step
    assert result["val_whole"] is False
    assert result["val_chars"] <= 2 * WINDOW
    assert result["val_loss"] == entries[-1]["val_loss"]


def test_a_process_knows_its_age() -> None:
    code = "import time; time.sleep(0.3); from rill.train.loop.process_age import process_age; print(process_age())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 0.3 < float(done.stdout) < time.monotonic() - began + 0.1 or not Path("/proc/self/stat").exists()


def test_a_process_that_was_something_else_before_has_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rill.train.loop.process_age.LONGEST_START", 0.0)
    assert process_age() == 0.0
    monkeypatch.setattr("rill.train.loop.process_age.STAT", Path("/nonexistent"))
    assert process_age() == 0.0


@pytest.mark.parametrize(
    ("argv", "counts"),
    [
        (["rill", "train", "--out", "run", "--steps", "1"], True),
        (["/x/rill/train/__main__.py", "--out", "run", "--steps", "1"], True),
        (["pytest", "tests"], False),
        (["program"], False),
    ],
)
def test_the_start_of_the_process_counts_if_it_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], counts: bool
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr("rill.train.command.process_age", lambda: 7.0)
    monkeypatch.setattr("rill.train.command.time", SimpleNamespace(monotonic=lambda: 100.0))
    seen = []
    monkeypatch.setattr("rill.train.command._carry_out", lambda options, team, began: seen.append(began) or 0)
    assert main(["--out", "run", "--steps", "1"]) == 0
    assert seen == [93.0 if counts else 100.0]
