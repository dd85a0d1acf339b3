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
