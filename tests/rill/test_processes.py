"""What Rill starts finds this very Rill, and never runs code of the current folder."""

import os
import subprocess
import sys

import pytest
from servers import ROOT

from rill.processes import python_command, python_environment


@pytest.mark.parametrize("given", [None, "", ":", ".", ":{here}:", "{here}", "lib:", "::.::"])
def test_no_entry_of_the_path_stands_for_the_current_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given.format(here=tmp_path))
    for name in ("train.py", "socket.py", "grpc.py", "pickle.py", "sitecustomize.py"):
        (tmp_path / name).write_text("open('executed', 'w')")
    command = [*python_command("rill.vocabulary")[:-2], "-c", "import rill, sys, socket, pickle; print(rill.__file__)"]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"{ROOT}/rill/__init__.py\n"
    assert not (tmp_path / "executed").exists()


def test_other_entries_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", "", "lib"]))
    assert python_environment()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere", "lib"]


def test_an_installed_rill_adds_no_entry(monkeypatch):
    """Its folder has packages that must not come before the standard library."""
    monkeypatch.setattr("rill.processes._HOME", "/venv/lib/python3.11/site-packages")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "PYTHONPATH" not in python_environment()


def test_a_deleted_current_folder_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert python_environment()
    assert python_command("rill.vocabulary")[0] == sys.executable


SPAWN = """
import operator
from unittest.mock import Mock
from rill.export.pool import run_all

if __name__ == "__main__":
    print(run_all([1, 2], operator.is_, None, 2, Mock()))
"""


def test_the_processes_of_an_export_are_no_exception(tmp_path):
    """multiprocessing starts them by `python -c`, which looks into the current folder first."""
    here, program = tmp_path / "here", tmp_path / "bin" / "start.py"
    here.mkdir()
    program.parent.mkdir()
    program.write_text(SPAWN)
    for name in ("multiprocessing.py", "socket.py", "rill.py", "signal.py"):
        (here / name).write_text("open('executed', 'w')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[False, False]\n"
    assert not (here / "executed").exists()
