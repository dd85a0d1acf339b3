"""Several processes that train one model, started by the real torchrun.

As launches are slow, there are few of them. Most tests look at what one launch did, in which both processes do JOBS one
after the other: as a script, this file is what they run.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rill.train.command import main
from rill.train.errors import ConfigError, CorpusError
from rill.train.loop.processes import Processes
from rill.train.loop.trainer import Trainer
from rill.train.text.held_out import Measurement

pytestmark = pytest.mark.timeout(600)  # torchrun is slow to start, and slower on a busy machine
ROOT = Path(__file__).parent.parent.parent
SMALL = "--corpus text.txt --hidden 12 --batch 4 --window 16 --warmup 0 --threads 1 --device cpu"
SEQUENTIAL = f"{SMALL} --cell lstm --embedding 6 --steps 40 --evaluate-every 10"
RANDOM = f"{SMALL} --sampling random --accumulate 2 --steps 40 --evaluate-every 10"
LONG = f"{SMALL} --layers 2 --dropout 0.3 --steps 150 --evaluate-every 10"
Results = dict[str, list[tuple[object, str, str]]]
Fault = Callable[[pytest.MonkeyPatch, int], None]


def terminated(patch: pytest.MonkeyPatch, rank: int) -> None:
    step = Trainer._step

    def signalled(trainer: Trainer, done: float) -> None:
        step(trainer, done)
        if trainer.position.step == 13:
            signal.raise_signal(signal.SIGTERM)

    if rank == 1:
        patch.setattr(Trainer, "_step", signalled)


def measured_differently(patch: pytest.MonkeyPatch, rank: int) -> None:
    losses = cycle([3.0, 2.0, 1.0] if rank else [1.0, 2.0, 3.0])
    patch.setattr("rill.train.text.held_out.HeldOutText.measure", lambda *arguments: Measurement(next(losses), 1))


def draws_told(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Print the number that dropout would draw first in each step."""
    loss = Trainer._loss

    def telling(trainer: Trainer, *arguments: Any) -> Any:
        copy = torch.Generator()
        copy.set_state(torch.get_rng_state())
        print(torch.rand(1, generator=copy).item(), file=sys.stderr)
        return loss(trainer, *arguments)

    patch.setattr(Trainer, "_loss", telling)


def disk_full(patch: pytest.MonkeyPatch, rank: int) -> None:
    def save(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr("rill.train.loop.trainer.save_checkpoint", save)


def text_missing(patch: pytest.MonkeyPatch, rank: int) -> None:
    def read(*arguments: object) -> None:
        raise CorpusError("process 1 has no text")

    if rank == 1:
        patch.setattr("rill.train.loop.train.read_texts", read)


class Job(NamedTuple):
    """A run of the command, whose folder is named as the job unless `arguments` say otherwise."""

    arguments: str
    fault: Fault | None = None


JOBS = {
    "sequential": Job(SEQUENTIAL),
    "random": Job(RANDOM),
    "cut": Job(SEQUENTIAL, terminated),
    "begun alone": Job("--resume"),
    "long": Job(LONG),
    "interrupted": Job("--resume"),
    "dropout": Job(f"{SMALL} --dropout 0.5 --steps 3", draws_told),
    "no time": Job(f"{SMALL} --max-minutes 1e-9"),
    "a second": Job(f"{SMALL} --max-minutes 0.017"),
    "measured differently": Job(f"{SMALL} --steps 40 --evaluate-every 5 --patience 1", measured_differently),
    "uneven": Job(f"{SMALL} --steps 4 --batch 5"),
    "tagger": Job("--corpus subtraction:4 --task tag --device cpu --steps 4 --batch 4"),
    "in the way": Job(f"{SMALL} --steps 4 --out random"),
    "no corpus": Job("--corpus nowhere.txt --steps 4"),
    "standard input": Job("--corpus - --steps 4"),
    "mistyped": Job("--steps four"),
    "help": Job("--help"),
    "text missing": Job(f"{SMALL} --steps 4", text_missing),
    # The last one: the connections of a run that breaks off are closed when its process ends.
    "disk full": Job(f"{SMALL} --steps 40 --evaluate-every 5", disk_full),
}


def work() -> None:
    """Do all jobs in this process and write down what came of them."""
    rank = int(os.environ["RANK"])
    store = next(rendezvous("env://"))[0]
    results = {}
    threads = psutil.Process().num_threads()
    for name, job in JOBS.items():
        store.set(f"{name} {rank}", "")
        store.wait([f"{name} 0", f"{name} 1"])
        output, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            pytest.MonkeyPatch.context() as patch,
        ):
            own = dist.PrefixStore(name, store)  # as if no job had been before
            patch.setattr("rill.train.loop.processes.rendezvous", lambda url, own=own: iter([(own, 0, 0)]))
            if name != "sequential":
                patch.setattr("rill.train.loop.trainer.draw_curves", lambda *paths: None)
            if job.fault:
                job.fault(patch, rank)
            try:
                code: object = main(["--out", name, *job.arguments.split()])
            except (Exception, SystemExit) as error:
                code = repr(error)
        results[name] = (code, output.getvalue(), errors.getvalue())
        if code == 0:  # an interpreter that ends beside gloo's threads may abort
            assert psutil.Process().num_threads() == threads, name
    Path(f"results-{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all processes of this file, with a text in it."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "text.txt").write_text("".join(f"{n} bottles hang on wall number {n * 7 % 13}\n" for n in range(200)))
    with contextlib.chdir(folder):
        yield folder


@dataclass
class Launch:
    """torchrun with two processes, whose output goes to files."""

    process: subprocess.Popen[str]
    logs: Path
    output: str = ""

    def workers(self) -> list[psutil.Process]:
        """Both processes, in their order."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda worker: worker.environ()["RANK"])

    def end(self) -> int:
        """Wait for torchrun: its exit status. `output` is then what it printed itself."""
        self.output, _ = self.process.communicate(timeout=240)
        return self.process.returncode

    def said(self, rank: int) -> tuple[str, str]:
        """What a process printed: standard output and standard error."""
        (folder,) = self.logs.glob(f"*/attempt_0/{rank}")
        return (folder / "stdout.log").read_text(), (folder / "stderr.log").read_text()


@contextlib.contextmanager
def launch(place: Path, name: str, command: str) -> Iterator[Launch]:
    """`torchrun python COMMAND` in `place`, where warnings are errors; ended at the end."""
    logs = place / "logs" / name
    options = "--standalone --local-addr 127.0.0.1 --nproc-per-node 2 --redirects 3 --no-python --log-dir"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *options.split(), logs),
            *(sys.executable, "-W", "error", *command.split()),
        ],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Launch(process, logs)
        finally:
            process.terminate()  # which ends the two as well


class Interruption(NamedTuple):
    """A launch that was ended: its processes, torchrun's exit status, and the checkpoint it left."""

    launch: Launch
    workers: list[psutil.Process]
    code: int
    checkpoint: dict[str, Any]


@pytest.fixture(scope="module")
def interruptions(place: Path) -> dict[str, Interruption]:
    """One run of LONG: interrupted, resumed, and one of its processes killed."""
    metrics = place / "interrupted" / "metrics.jsonl"

    def interrupt(name: str, command: str, evaluations: int, stop: Callable[[Launch], None]) -> Interruption:
        with launch(place, name, f"-m rill.train --out interrupted {command}") as running:
            deadline = time.monotonic() + 240
            while not metrics.exists() or metrics.read_text().count("\n") < evaluations:
                assert running.process.poll() is None, running.said(0)
                assert time.monotonic() < deadline
                time.sleep(0.005)
            workers = running.workers()
            stop(running)
            code = running.end()
        return Interruption(running, workers, code, torch.load("interrupted/trainer.pt", weights_only=True))

    return {
        "ctrl-c": interrupt("ctrl-c", LONG, 1, lambda running: running.process.send_signal(signal.SIGINT)),
        "killed": interrupt("killed", "--resume", 4, lambda running: running.workers()[1].kill()),
    }


@pytest.fixture(scope="module")
def results(place: Path, interruptions: dict[str, Interruption]) -> Results:
    """Exit status, standard output and standard error of both processes for every job."""
    with pytest.MonkeyPatch.context() as patch:
        terminated(patch, 1)
        assert main(["--out", "begun alone", *SEQUENTIAL.split()]) == 128 + signal.SIGTERM
    with launch(place, "jobs", __file__) as running:
        assert running.end() == 0, running.said(0)[1] + running.said(1)[1]
    assert running.output == ""
    assert running.said(0) == running.said(1) == ("", "")
    first, second = (json.loads(Path(f"results-{rank}.json").read_text()) for rank in (0, 1))
    return {name: [first[name], second[name]] for name in JOBS}


def lines(folder: str) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock says."""
    entries = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{key: e[key] for key in e if key not in ("seconds", "chars_per_second")} for e in entries]


def assert_close_runs(one: str, other: str) -> None:
    """All losses and all weights within 1e-5."""
    assert lines(one) == [pytest.approx(entry, rel=0, abs=1e-5) for entry in lines(other)]
    ours, theirs = (safetensors.torch.load_file(Path(folder, "model.safetensors")) for folder in (one, other))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)


def test_ctrl_c_saves_and_leaves_no_process(interruptions: dict[str, Interruption]) -> None:
    ended, workers, code, checkpoint = interruptions["ctrl-c"]
    assert code != 0
    output, errors = ended.said(0)
    assert output.splitlines()[-1] == f"stopped at step {checkpoint['position']['step']}; continue with --resume"
    assert errors == ""
    assert ended.said(1) == ("", "")
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


def test_a_killed_process_ends_the_others(interruptions: dict[str, Interruption]) -> None:
    ended, workers, code, _ = interruptions["killed"]
    assert code != 0
    # torchrun may be faster than the one that is left
    assert ended.said(0)[1] in ("", "error: another process of this run has ended; continue with --resume\n")
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize(("name", "arguments"), [("sequential", SEQUENTIAL), ("random", RANDOM)])
def test_two_processes_train_the_model_of_one(results: Results, tmp_path: Path, name: str, arguments: str) -> None:
    assert [code for code, _, _ in results[name]] == [0, 0]
    assert main(["--out", str(tmp_path / "alone"), *arguments.split()]) == 0
    assert_close_runs(name, str(tmp_path / "alone"))
    entries = lines(name)
    assert len(entries) == 4
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] - 0.1


def test_the_first_process_alone_prints(results: Results) -> None:
    (_, output, errors), second = results["sequential"]
    assert second == [0, "", ""]
    assert errors == ""
    printed = output.splitlines()
    assert "; cpu × 2 processes; from step 0" in printed[0]
    assert [line.split()[:2] for line in printed[1:5]] == [["step", str(step)] for step in (10, 20, 30, 40)]
    assert printed[5].startswith("--- step 40")
    assert output.count("--- step") == 1
    names = {"config.json", "curves.png", "metrics.jsonl", "model.safetensors", "samples.txt", "summary.json"}
    assert {path.name for path in Path("sequential").iterdir()} == names | {"trainer.pt", "trainer.previous.pt"}


def test_a_signal_to_one_process_stops_both_with_all_rows_saved(
    results: Results,
) -> None:
    (code, output, errors), second = results["cut"]
    assert code == 128 + signal.SIGTERM
    assert output.splitlines()[-1] == "stopped at step 13; continue with --resume"
    assert errors == ""
    assert second == [code, "", ""]
    position = torch.load("cut/trainer.pt", weights_only=True)["position"]
    assert [tuple(part.shape) for part in position["state"]] == [(1, 4, 12)] * 2
    assert position["chars"] == 13 * 4 * 16


def test_one_process_goes_on_from_two_and_two_from_one(results: Results, tmp_path: Path) -> None:
    assert [code for code, _, _ in results["begun alone"]] == [0, 0]
    assert_close_runs("begun alone", "sequential")
    folder = shutil.copytree("cut", tmp_path / "cut")
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_close_runs(str(folder), "sequential")


def test_a_resumed_run_equals_an_uninterrupted_one(results: Results) -> None:
    assert [code for code, _, _ in results["long"] + results["interrupted"]] == [0] * 4
    assert lines("interrupted") == lines("long")
    for name in ("model.safetensors", "samples.txt"):
        assert Path("interrupted", name).read_bytes() == Path("long", name).read_bytes()
    one, other = (torch.load(f"{folder}/trainer.pt", weights_only=True) for folder in ("interrupted", "long"))
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name])


def test_each_process_and_step_has_its_own_dropout(results: Results) -> None:
    draws = [line for _, _, errors in results["dropout"] for line in errors.splitlines()]
    assert len(set(draws)) == len(draws) == 6


@pytest.mark.parametrize(("name", "least", "most"), [("no time", 1, 1), ("a second", 2, 10**6)])
def test_all_agree_when_the_time_is_over(results: Results, name: str, least: int, most: int) -> None:
    assert [(code, errors) for code, _, errors in results[name]] == [(0, ""), (0, "")]
    assert least <= json.loads(Path(name, "summary.json").read_text())["steps"] <= most


def test_all_stop_at_the_same_evaluation(results: Results) -> None:
    assert [(code, errors) for code, _, errors in results["measured differently"]] == [(0, ""), (0, "")]
    assert [entry["val_loss"] for entry in lines("measured differently")] == [3.0, 2.0, 3.0]


MISTAKES = {
    "uneven": "error: a batch of 5 rows cannot be shared by 2 processes; change --batch\n",
    "tagger": "error: a tagger trains in one process\n",
    "in the way": "error: random already holds a run; continue it with --resume or choose another --out\n",
    "no corpus": "error: 'nowhere.txt' is neither a file, a folder, '-' nor a named corpus",
    "standard input": "error: several processes cannot share standard input; name a file\n",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(results: Results, name: str) -> None:
    assert [(code, output) for code, output, _ in results[name]] == [(2, ""), (2, "")]
    errors = "".join(errors for _, _, errors in results[name])
    assert errors.startswith(MISTAKES[name])
    assert errors.count("\n") == 1
    assert not Path(name).exists()


def test_a_mistake_ends_torchrun(place: Path) -> None:
    with launch(place, "mistake", f"-m rill.train --out mistake {SMALL} --batch 5") as running:
        assert running.end() != 0
    assert sorted([running.said(0), running.said(1)]) == [("", ""), ("", MISTAKES["uneven"])]
    assert not Path("mistake").exists()


def test_help_and_complaints_about_usage_are_printed_once(
    results: Results,
) -> None:
    (code, _, errors), second = results["mistyped"]
    assert code == "SystemExit(2)"
    assert errors.endswith("argument --steps: invalid int value: 'four'\n")
    assert second == [code, "", ""]
    (code, output, _), second = results["help"]
    assert code == "SystemExit(0)"
    assert "--max-minutes" in output
    assert second == [code, "", ""]


def test_what_goes_wrong_in_one_process_is_told_and_ends_the_other(
    results: Results,
) -> None:
    assert [(code, errors) for code, _, errors in results["disk full"]] == [
        (2, "error: [Errno 28] No space left on device\n"),
        (2, ""),
    ]
    assert [(code, errors) for code, _, errors in results["text missing"]] == [
        (2, ""),
        (2, "error: process 1 has no text\n"),
    ]


def in_a_team(patch: pytest.MonkeyPatch, rank: int, size: int) -> Processes:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}.items():
        patch.setenv(name, str(value))
    return Processes()


def test_every_row_belongs_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = list(range(12))
    shares = [batch[in_a_team(monkeypatch, rank, 3).rows(12)] for rank in range(3)]
    assert shares == [batch[0:4], batch[4:8], batch[8:12]]
    with pytest.raises(ConfigError, match="a batch of 10 rows cannot be shared by 3 processes"):
        in_a_team(monkeypatch, 0, 3).rows(10)


def test_every_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert [in_a_team(monkeypatch, rank, 2).device(name) for rank in (0, 1) for name in ("auto", "cuda", "cpu")] == [
        *("cuda:0", "cuda:0", "cpu"),
        *("cuda:1", "cuda:1", "cpu"),
    ]
    assert chosen == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="several processes cannot share cuda:1; use --device cuda"):
        in_a_team(monkeypatch, 0, 2).device("cuda:1")
    with pytest.raises(ConfigError, match="3 processes need as many GPUs, but PyTorch sees 2 here; start fewer"):
        in_a_team(monkeypatch, 0, 3).device("auto")


def test_a_team_that_torchrun_did_not_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    in_a_team(monkeypatch, 0, 2)
    assert main([]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: WORLD_SIZE is 2, but the processes cannot find one another (")
    assert errors.endswith("); start them with torchrun\n")
    assert errors.count("\n") == 1


if __name__ == "__main__":
    work()
