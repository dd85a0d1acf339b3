"""`make` with a Python that is too old, or missing: one sentence, and the next try works."""

import shutil
import subprocess
import sys

import pytest
from servers import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")

OLD = """#!/bin/sh
# A Python 3.10 for questions about its version; it runs nothing else.
[ "$1" = -c ] && exec {python} -c "import sys; sys.version_info = (3, 10, 13); exec(sys.argv[1])" "$2"
exit 9
"""


@pytest.fixture
def make(tmp_path):
    """Set up an environment in a copy of the project; returns exit status, and what was written to stderr."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "rill" / "serve").mkdir(parents=True)
    (tmp_path / "old").write_text(OLD.format(python=sys.executable))
    (tmp_path / "old").chmod(0o755)

    def run(python):
        command = ["make", ".venv/.ready", f"PYTHON={python}", "PIP=true"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    ("python", "problem"), [("./old", "; ./old is 3.10"), ("./nothing", ", and there is no ./nothing")]
)
def test_an_unusable_python_is_one_sentence(make, tmp_path, python, problem):
    status, errors = make(python)
    assert status == 2
    first, _ = errors.splitlines()  # the second is that of make
    assert first == (f"error: Rill needs Python 3.11 or newer{problem}; choose another: make PYTHON=python3.12 ...")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.long
def test_an_environment_of_an_older_python_is_made_again(make, tmp_path):
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    shutil.copy(tmp_path / "old", environment / "python")
    (tmp_path / ".venv" / "of the old one").touch()
    assert make(sys.executable) == (0, "")
    assert not (tmp_path / ".venv" / "of the old one").exists()
    (environment / "what was installed meanwhile").touch()
    (tmp_path / ".venv" / ".ready").unlink()
    assert make(sys.executable) == (0, "")
    assert (environment / "what was installed meanwhile").exists()
