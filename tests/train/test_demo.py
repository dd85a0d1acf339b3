"""`make demo` and a run that a busy machine has left poor; the commands are stand-ins that record their calls."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RILL = """#!/bin/sh
echo "$1" >> calls
if [ "$1" = train ] && [ ! -e runs/demo/summary.json ]; then
  mkdir -p runs/demo
  echo '{"training": {"corpus": ["shakespeare"]}}' > runs/demo/config.json
  echo "{\\"val_loss\\": $LOSS}" > runs/demo/summary.json
  echo trained >> calls
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "demo", tmp_path / "scripts" / "demo")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "rill").write_text(RILL)
    (tmp_path / "bin" / "rill").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def demo(checkout: Path, loss: str) -> str:
    environment = os.environ | {"BIN": str(checkout / "bin"), "LOSS": loss}
    command = [str(checkout / "scripts" / "demo")]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def times_trained(checkout: Path) -> int:
    return (checkout / "calls").read_text().split().count("trained")


def test_a_poor_demo_says_so_and_is_trained_again(checkout: Path) -> None:
    out = demo(checkout, "2.4")
    assert "This model is poor (validation 2.40)" in out
    assert "make demo trains it again, make clean removes it" in out
    assert (checkout / "calls").read_text().split() == ["train", "trained", "export", "generate"]

    out = demo(checkout, "1.6")
    assert "The run in runs/demo is poor: validation 2.40" in out
    assert "This model is poor" not in out
    assert times_trained(checkout) == 2

    out = demo(checkout, "2.4")
    assert "is poor" not in out
    assert times_trained(checkout) == 2
    assert f"\n  {checkout}/bin/rill chat --bundle bundles/demo " in out  # whatever the reader's PATH is


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_the_demo_removes_no_other_run(checkout: Path, name: str) -> None:
    (checkout / "runs" / "demo").mkdir(parents=True)
    (checkout / "runs" / "demo" / "config.json").write_text(json.dumps({"training": {"corpus": ["sanguo"]}}))
    (checkout / "runs" / "demo" / "summary.json").write_text(json.dumps({"val_loss": 4.5}))
    (checkout / "runs" / "demo" / name).write_text("damaged")
    if name == "config.json":
        (checkout / "runs" / "demo" / name).write_text(json.dumps({"training": {"corpus": ["sanguo"]}}))
    assert "poor" not in demo(checkout, "1.6")
    assert times_trained(checkout) == 0
