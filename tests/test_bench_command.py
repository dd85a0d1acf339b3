"""The benchmark itself: that it runs, and that what it reports hangs together. No timing is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from bench.__main__ import main
from export.bundle import manifest_of, write_bundle
from export.export import build_bundle
from train.config import ModelConfig, TrainingConfig
from train.model import CharacterModel
from train.run import Run
from train.vocab import Vocabulary

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    vocabulary, model = Vocabulary.of_text("\n abcdefgh"), ModelConfig(hidden=16)
    weights = CharacterModel(model, len(vocabulary)).state_dict()
    made = build_bundle(Run(folder, model, TrainingConfig(steps=1), vocabulary, (), weights), "tiny")
    write_bundle(made, manifest_of(made, {}, {}), folder)
    return folder


def test_a_short_run_reports_floors_and_loads_that_hang_together(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    options = ["--json", str(path), "--streams", "1", "3", "--seconds", "0.5", "--max-chars", "200"]
    command = [sys.executable, "-W", "error", "-m", "bench", "--bundle", str(bundle), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for label in ("decode graph", "PyTorch eager", "characters/s", "first character", "server CPU", "listening after"):
        assert label in done.stdout

    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == {"command", "machine", "versions", "bundle", "server", "floors", "loads"}
    assert found["command"].startswith("python -m bench --bundle ")
    assert found["machine"]["cores"] >= 1
    assert found["bundle"]["name"] == "tiny"
    assert found["server"]["started_here"]
    assert found["server"]["start_seconds"] > 0
    assert found["server"]["rest_megabytes"] > 10

    speeds = {(floor["name"], floor["batch"]): floor["characters_per_second"] for floor in found["floors"]}
    assert set(speeds) == {(name, batch) for name in ("decode", "eager") for batch in (1, 3)}
    assert all(min(floor["samples"]) > 0 for floor in found["floors"])
    for load, streams in zip(found["loads"], (1, 3), strict=True):
        speed = load["characters_per_second"]
        assert load["streams"] == streams
        assert load["seconds"] >= 0.5
        assert load["texts"] > 0
        assert speed == pytest.approx(load["messages_per_second"] * load["characters_per_message"])
        assert load["characters_per_message"] >= 1
        for kind in ("first_character_ms", "inter_character_us"):
            assert 0 < load[kind]["p50"] <= load[kind]["p99"]
        assert load["server_cpu_us_per_character"] > 0
        assert load["server_megabytes"] > 10
        assert 0 <= load["other_cores"] <= found["machine"]["cores"]
        assert speed == pytest.approx(sum(load["windows"]) / len(load["windows"]), rel=0.2)
        for floor in ("decode", "eager"):
            assert 0.1 < load[f"ratio_to_{floor}"] / (speed / speeds[floor, streams]) < 10


def test_what_cannot_be_measured_is_one_clear_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, line in [
        (["--bundle", str(tmp_path)], f"error: {tmp_path} is not a bundle"),
        (["--bundle", str(bundle), "--target", "127.0.0.1:1"], "error: 127.0.0.1:1: UNAVAILABLE: "),
    ]:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(line)
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_a_signal_ends_the_server_too(bundle: Path) -> None:
    command = [sys.executable, "-m", "bench", "--bundle", str(bundle), "--streams", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while not (children := watched.children()):
            assert process.poll() is None
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted\n"
    assert not any(child.is_running() for child in children)
