"""Several processes that train one model, started by the real torchrun.

Launches are slow, so there are few of them. Most tests examine the results of one launch, in which both processes run
JOBS one after the other: they run this file as a script.
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
from training import lines

from rill.train.command import main
from rill.train.errors import ConfigError, CorpusError
from rill.train.loop.processes import Processes
from rill.train.loop.trainer import Trainer
from rill.train.text.held_out import Measurement

pytestmark = pytest.mark.timeout(600)  # torchrun is slow to start, and slower on a busy machine
ROOT = Path(__file__).parent.parent.parent
SMALL = "--corpus text.txt --hidden 12 --batch 4 --window 16 --warmup 0 --threads 1 --device cpu"
SEQUENTIAL = f"{SMALL} --cell lstm --embedding 6 --ngrams 3 --ngram-rows 64 --steps 40 --evaluate-every 10"
RANDOM = f"{SMALL} --sampling random --accumulate 2 --steps 40 --evaluate-every 10"
LINES = f"{SMALL} --lines --window 8 --steps 40 --evaluate-every 10"
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


def draws_printed(patch: pytest.MonkeyPatch, rank: int) -> None:
    """Print the first number that dropout would draw in each step."""
    loss = Trainer._loss

    def printing(trainer: Trainer, *arguments: Any) -> Any:
        copy = torch.Generator()
        copy.set_state(torch.get_rng_state())
        print(torch.rand(1, generator=copy).item(), file=sys.stderr)
        return loss(trainer, *arguments)

    patch.setattr(Trainer, "_loss", printing)


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
    """A run of the command; its folder has the name of the job unless `arguments` give another."""

    arguments: str
    fault: Fault | None = None


JOBS = {
    "sequential": Job(SEQUENTIAL),
    "random": Job(RANDOM),
    "lines": Job(LINES),
    "cut": Job(SEQUENTIAL, terminated),
    "begun alone": Job("--resume"),
    "long": Job(LONG),
    "interrupted": Job("--resume"),
    "dropout": Job(f"{SMALL} --dropout 0.5 --steps 3", draws_printed),
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
    # Last, because the connections of a run that fails are closed only when its process ends.
    "disk full": Job(f"{SMALL} --steps 40 --evaluate-every 5", disk_full),
}


def run_jobs() -> None:
    """Run all jobs in this process and write their results to a file."""
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
            own = dist.PrefixStore(name, store)  # as if this were the first job
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
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all processes of this file; it contains a text."""
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
        """Both processes, by rank."""
        return sorted(psutil.Process(self.process.pid).children(), key=lambda worker: worker.environ()["RANK"])

    def end(self) -> int:
        """Wait for torchrun and return its exit status; its own output is then in `output`."""
        self.output, _ = self.process.communicate(timeout=240)
        return self.process.returncode

    def printed_by(self, rank: int) -> tuple[str, str]:
        """The standard output and standard error of a process."""
        (folder,) = self.logs.glob(f"*/attempt_0/{rank}")
        return (folder / "stdout.log").read_text(), (folder / "stderr.log").read_text()


@contextlib.contextmanager
def launch(folder: Path, name: str, command: str) -> Iterator[Launch]:
    """Run `torchrun python COMMAND` in `folder`, with warnings as errors; terminate it on exit."""
    logs = folder / "logs" / name
    options = "--standalone --local-addr 127.0.0.1 --nproc-per-node 2 --redirects 3 --no-python --log-dir"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *options.split(), logs),
            *(sys.executable, "-W", "error", *command.split()),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Launch(process, logs)
        finally:
            process.terminate()  # and with it both workers


class Interruption(NamedTuple):
    """An interrupted launch: its processes, torchrun's exit status, and the last checkpoint."""

    launch: Launch
    workers: list[psutil.Process]
    code: int
    checkpoint: dict[str, Any]


def interrupt(folder: Path, run: str, arguments: str, evaluations: int, stop: Callable[[Launch], None]) -> Interruption:
    """Launch a run, and stop it after so many evaluations."""
    metrics = folder / run / "metrics.jsonl"
    with launch(folder, run, f"-m rill.train --out {run} {arguments}") as running:
        deadline = time.monotonic() + 240
        while not metrics.exists() or metrics.read_text().count("\n") < evaluations:
            assert running.process.poll() is None, running.printed_by(0)
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = running.workers()
        stop(running)
        code = running.end()
    checkpoint = torch.load(folder / run / "trainer.pt", weights_only=True)
    return Interruption(running, workers, code, checkpoint)


@pytest.fixture(scope="module")
def interrupted(working_folder: Path) -> Interruption:
    """The run of LONG named `interrupted`, after Ctrl-C."""
    return interrupt(working_folder, "interrupted", LONG, 1, lambda run: run.process.send_signal(signal.SIGINT))


@pytest.fixture(scope="module")
def results(working_folder: Path, interrupted: Interruption) -> Results:
    """The exit status, standard output and standard error of both processes for every job."""
    with pytest.MonkeyPatch.context() as patch:
        terminated(patch, 1)
        assert main(["--out", "begun alone", *SEQUENTIAL.split()]) == 128 + signal.SIGTERM
    with launch(working_folder, "jobs", __file__) as running:
        assert running.end() == 0, running.printed_by(0)[1] + running.printed_by(1)[1]
    assert running.output == ""
    assert running.printed_by(0) == running.printed_by(1) == ("", "")
    first, second = (json.loads(Path(f"results-{rank}.json").read_text()) for rank in (0, 1))
    return {name: [first[name], second[name]] for name in JOBS}


def assert_close_runs(one: str, other: str) -> None:
    """All losses and all weights within 1e-5."""
    assert lines(Path(one)) == [pytest.approx(entry, rel=0, abs=1e-5) for entry in lines(Path(other))]
    ours, theirs = (safetensors.torch.load_file(Path(folder, "model.safetensors")) for folder in (one, other))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.long
def test_ctrl_c_saves_and_leaves_no_process(interrupted: Interruption) -> None:
    ended, workers, code, checkpoint = interrupted
    assert code != 0
    output, errors = ended.printed_by(0)
    assert output.splitlines()[-1] == f"stopped at step {checkpoint['position']['step']}; continue with --resume"
    assert errors == ""
    assert ended.printed_by(1) == ("", "")
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.long
@pytest.mark.long
def test_a_killed_process_ends_the_others_and_the_run_can_be_resumed(working_folder: Path, results: Results) -> None:
    ended, workers, code, _ = interrupt(working_folder, "killed", LONG, 4, lambda run: run.workers()[1].kill())
    assert code != 0
    # torchrun may end the remaining process before it reports
    assert ended.printed_by(0)[1] in ("", "error: another process of this run has ended; continue with --resume\n")
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)
    with launch(working_folder, "resumed", "-m rill.train --out killed --resume") as running:
        assert running.end() == 0
    assert lines(Path("killed")) == lines(Path("long"))


@pytest.mark.long
@pytest.mark.parametrize(("name", "arguments"), [("sequential", SEQUENTIAL), ("random", RANDOM), ("lines", LINES)])
def test_two_processes_train_the_model_of_one(results: Results, tmp_path: Path, name: str, arguments: str) -> None:
    assert [code for code, _, _ in results[name]] == [0, 0]
    assert main(["--out", str(tmp_path / "alone"), *arguments.split()]) == 0
    assert_close_runs(name, str(tmp_path / "alone"))
    entries = lines(Path(name))
    assert len(entries) == 4
    assert entries[-1]["train_loss"] < entries[0]["train_loss"] - 0.1


@pytest.mark.long
def test_the_first_process_alone_prints(results: Results) -> None:
    (_, output, errors), second = results["sequential"]
    assert second == [0, "", ""]
    assert errors == ""
    printed = [line for line in output.splitlines() if not line.startswith("note: ")]
    assert "; cpu × 2 processes; from step 0" in printed[1]
    assert [line.split()[:2] for line in printed[2:6]] == [["step", str(step)] for step in (10, 20, 30, 40)]
    assert printed[6].startswith("--- step 40")
    assert output.count("--- step") == 1
    names = {"config.json", "curves.png", "metrics.jsonl", "model.safetensors", "samples.txt", "summary.json"}
    assert {path.name for path in Path("sequential").iterdir()} == names | {"trainer.pt", "trainer.previous.pt"}


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_with_all_rows_saved(
    results: Results,
) -> None:
    (code, output, errors), second = results["cut"]
    assert code == 128 + signal.SIGTERM
    assert output.splitlines()[-1] == "stopped at step 13; continue with --resume"
    assert errors == ""
    assert second == [code, "", ""]
    position = torch.load("cut/trainer.pt", weights_only=True)["position"]
    assert [tuple(part.shape) for part in position["state"]] == [(1, 4, 12), (1, 4, 12), (2, 4)]  # h, c, context
    assert position["chars"] == 13 * 4 * 16


@pytest.mark.long
def test_one_process_continues_a_run_of_two_and_two_a_run_of_one(results: Results, tmp_path: Path) -> None:
    assert [code for code, _, _ in results["begun alone"]] == [0, 0]
    assert_close_runs("begun alone", "sequential")
    folder = shutil.copytree("cut", tmp_path / "cut")
    assert main(["--out", str(folder), "--resume"]) == 0
    assert_close_runs(str(folder), "sequential")


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(results: Results) -> None:
    assert [code for code, _, _ in results["long"] + results["interrupted"]] == [0] * 4
    assert lines(Path("interrupted")) == lines(Path("long"))
    for name in ("model.safetensors", "samples.txt"):
        assert Path("interrupted", name).read_bytes() == Path("long", name).read_bytes()
    one, other = (torch.load(f"{folder}/trainer.pt", weights_only=True) for folder in ("interrupted", "long"))
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name])


@pytest.mark.long
def test_each_process_and_step_has_its_own_dropout(results: Results) -> None:
    draws = [line for _, _, errors in results["dropout"] for line in errors.splitlines()]
    assert len(set(draws)) == len(draws) == 6


@pytest.mark.long
@pytest.mark.parametrize(("name", "least", "most"), [("no time", 1, 1), ("a second", 2, 10**6)])
def test_all_agree_when_the_time_is_up(results: Results, name: str, least: int, most: int) -> None:
    assert [(code, errors) for code, _, errors in results[name]] == [(0, ""), (0, "")]
    assert least <= json.loads(Path(name, "summary.json").read_text())["steps"] <= most


@pytest.mark.long
def test_all_stop_at_the_same_evaluation(results: Results) -> None:
    assert [(code, errors) for code, _, errors in results["measured differently"]] == [(0, ""), (0, "")]
    assert [entry["val_loss"] for entry in lines(Path("measured differently"))] == [3.0, 2.0, 3.0]


MISTAKES = {
    "uneven": "error: a batch of 5 rows cannot be shared by 2 processes; change --batch\n",
    "tagger": "error: a tagger trains in one process\n",
    "in the way": "error: random already holds a complete run; choose another --out, or train it further: --from",
    "no corpus": "error: 'nowhere.txt' is neither a file, a folder, '-' nor a named corpus",
    "standard input": "error: several processes cannot share standard input; name a file\n",
}


@pytest.mark.long
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(results: Results, name: str) -> None:
    assert [(code, output) for code, output, _ in results[name]] == [(2, ""), (2, "")]
    errors = "".join(errors for _, _, errors in results[name])
    assert errors.startswith(MISTAKES[name])
    assert errors.count("\n") == 1
    assert not Path(name).exists()


@pytest.mark.long
def test_a_mistake_ends_torchrun(working_folder: Path) -> None:
    with launch(working_folder, "mistake", f"-m rill.train --out mistake {SMALL} --batch 5") as running:
        assert running.end() != 0
    assert sorted([running.printed_by(0), running.printed_by(1)]) == [("", ""), ("", MISTAKES["uneven"])]
    assert not Path("mistake").exists()


@pytest.mark.long
def test_help_and_usage_errors_are_printed_once(
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


@pytest.mark.long
def test_an_error_in_one_process_is_reported_and_ends_the_other(
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
    run_jobs()
