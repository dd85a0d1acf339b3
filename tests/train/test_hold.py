"""One process trains a run at a time; a lock that cannot be had is said."""

import errno
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import ROOT
from training import InterruptAfter

from rill.export.lock import exclusive
from rill.train.command import main
from rill.train.errors import RunError
from rill.train.loop.trainer import Trainer
from rill.train.record import hold as holding
from rill.train.record.hold import hold, refuse_if_held

TINY = ["--hidden", "4", "--batch", "4", "--window", "8", "--threads", "1", "--device", "cpu", "--steps", "4"]
pytestmark = pytest.mark.usefixtures("quick_training")

HOLDER = """
import sys
from pathlib import Path
from rill.train.record.hold import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    """A process that holds the folder, and is killed at the end."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_second_process_says_who_trains_the_run_and_changes_nothing(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    start = ["--corpus", str(sentences), "--out", str(folder), *TINY]
    with held_by_another(folder) as process:
        for arguments in (start, [*start, "--resume"], ["--out", str(folder), "--resume"]):
            assert main(arguments) == 2
            error = capsys.readouterr().err
            assert error.startswith(
                f"error: {folder} is being trained by process {process} on {platform.node()}, since"
            )
            assert "choose another --out" in error
            assert error.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == [".train.lock"]
    with monkeypatch.context() as patch:
        patch.setattr("rill.train.loop.train.Interrupt", lambda: InterruptAfter(2))
        assert main(start) == 130  # the killed process has left its file, but no lock
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ".train.lock" not in files
    with held_by_another(folder):
        for arguments in (
            start,
            ["--out", str(folder), "--resume"],
            ["--out", str(folder), "--resume", "--hidden", "5"],
        ):
            assert main(arguments) == 2
            assert "is being trained by process" in capsys.readouterr().err
    (folder / ".train.lock").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert main(["--out", str(folder), "--resume"]) == 0
    with held_by_another(folder):
        assert main(["--out", str(folder), "--resume"]) == 0  # there is nothing to do


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--corpus", "nowhere.txt", "--out", str(tmp_path / "a" / "b"), *TINY]) == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert main(["--corpus", "nowhere.txt", "--out", str(tmp_path / "mine"), *TINY]) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def denied(path: Path, wait: bool) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_look_at_the_lock_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_if_held(tmp_path)
    with hold(tmp_path) as held:
        assert held.notice == ""
        with monkeypatch.context() as patch:  # as if the holder were another user
            patch.setattr(holding, "acquire", denied)
            with pytest.raises(RunError, match=f"is being trained by process {os.getpid()} on"), hold(tmp_path):
                pass
        with pytest.raises(RunError, match=f"is being trained by process {os.getpid()} on"):
            refuse_if_held(tmp_path)
        (tmp_path / ".train.lock").write_text("")
        with pytest.raises(RunError, match="is being trained by another process; wait"):
            refuse_if_held(tmp_path)
    refuse_if_held(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    folder = tmp_path / "run"
    assert main(["--corpus", str(sentences), "--out", str(folder), *TINY]) == 0
    assert capsys.readouterr().out.startswith(f"note: {folder} is on a file system without locks; make sure that no")
    assert not (folder / ".train.lock").exists()
    with exclusive(tmp_path / "bundle"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_a_holder_on_another_machine_that_may_still_live_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "17 {} 2026-01-02 03:04:05"
    (tmp_path / ".train.lock").write_text(entry.format("elsewhere"))
    with hold(tmp_path) as held:
        assert held.notice.startswith("process 17 on elsewhere, since 2026-01-02 03:04:05, trained this run")
    (tmp_path / ".train.lock").write_text(entry.format(platform.node()))
    with hold(tmp_path) as held:
        assert held.notice == ""
    monkeypatch.setattr(holding, "acquire", lambda *arguments, **options: None)
    with pytest.raises(RunError, match="is being trained by another process"), hold(tmp_path):
        pass


def test_a_run_whose_folder_is_replaced_ends_and_leaves_the_other_alone(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, step = tmp_path / "run", Trainer._step

    def replaced(trainer: Trainer, done: float) -> None:
        if trainer.position.step == 2:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / ".train.lock").write_text("another run's")
        step(trainer, done)

    monkeypatch.setattr(Trainer, "_step", replaced)
    assert main(["--corpus", str(sentences), "--out", str(folder), *TINY, "--evaluate-every", "1"]) == 2
    error = f"error: {folder} was removed or replaced while it was being trained; this process ends\n"
    assert capsys.readouterr().err == error
    assert [path.name for path in folder.iterdir()] == [".train.lock"]
