"""How many cores a process has, and how threads wait for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rill.train.loop import cores
from rill.train.loop.cores import available_cores, let_threads_sleep


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores whose cgroups are files in a folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3),
        ("0::/on/the/host\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/../outside\n", {"cpu.max": "200000 100000"}, 2),
        ("4:memory:/m\n3:cpu,cpuacct:/d\n", {"cpu,cpuacct/d/cpu.cfs_quota_us": "150000"}, 8),  # no period
        (
            "4:memory:/m\n3:cpu,cpuacct:/d\n0::/\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "500000", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("3:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "1000000", "cpu/cpu.cfs_period_us": "0"}, 8),
        ("nonsense\n", {"cpu.max": "nonsense"}, 8),
    ],
)
def test_cores_are_what_the_quota_allows(system: Path, own: str, files: dict[str, str], expected: int) -> None:
    (system / "own").write_text(own)
    for name, content in files.items():
        (system / name).parent.mkdir(parents=True, exist_ok=True)
        (system / name).write_text(content + "\n")
    assert available_cores() == expected


def test_cores_without_cgroups_are_those_of_the_affinity(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "5000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "100"}, {"GOMP_SPINCOUNT": "100"}),
    ],
)
def test_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    let_threads_sleep()
    assert os.environ == expected


def test_threads_are_told_before_pytorch_is_loaded(tmp_path: Path) -> None:
    """OpenMP itself prints what it read."""
    (tmp_path / "text.txt").write_text("one two three " * 200)
    command = [sys.executable, "-m", "rill.train", "--corpus", "text.txt", "--out", "run", "--steps", "1"]
    small = ["--hidden", "4", "--batch", "2", "--window", "8", "--device", "cpu"]
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, *small], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '5000'" in done.stderr
