"""Programs of others, each in an environment of its own.

Environments are kept in .venv/outside, and made again when what they need changes. A test that needs one is skipped,
with the reason, where it cannot be made: there is no package index, or no npm.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from environments import Environment, create
from servers import ROOT

FOLDER = ROOT / ".venv" / "outside"
COMPLETE = ".complete"  # a file in an environment that was made to its end
# Where there is no package index, the tests are to be skipped soon.
PIP_IN_HASTE = ["--retries", "1", "--timeout", "10"]
NPM_IN_HASTE = ["--fetch-retries", "1", "--fetch-retry-mintimeout", "500", "--fetch-timeout", "10000"]
NPM_SECONDS = 60
OPENAI = "openai>=3,<4"  # for Python
OPENAI_NPM = {"openai": "^6.49.0"}
LANGCHAIN = "langchain-openai>=1.7,<2"


def python(name: str, *requirements: str) -> Environment:
    """Return the environment NAME with these requirements and what they need."""
    folder, problem = _python(name, requirements)
    if problem:
        pytest.skip(f"pip cannot install {' '.join(requirements)}: {problem}")
    return Environment(folder, 0.0)


def node_modules(name: str, dependencies: dict[str, str]) -> Path:
    """Return the folder `node_modules` NAME with these packages of npm."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            pytest.skip(f"there is no {program} on this machine")
    folder, problem = _node(name, tuple(dependencies.items()))
    if problem:
        pytest.skip(f"npm cannot install {' '.join(dependencies)}: {problem}")
    return folder / "node_modules"


@cache
def _python(name: str, requirements: tuple[str, ...]) -> tuple[Path, str]:
    def make(folder: Path) -> str:
        try:
            create(folder, [*PIP_IN_HASTE, *requirements], constrained=False)
        except AssertionError as error:  # with what pip printed
            return _lines(str(error))[-1]
        return ""

    return _kept(name, (sys.version, *requirements), make)


@cache
def _node(name: str, dependencies: tuple[tuple[str, str], ...]) -> tuple[Path, str]:
    def make(folder: Path) -> str:
        folder.mkdir()
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": dict(dependencies)}))
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel",
            "error",
            *NPM_IN_HASTE,
        ]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=NPM_SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer within {NPM_SECONDS} s"
        return _lines(done.stderr)[0] if done.returncode else ""

    return _kept(name, map(str, dependencies), make)


def _kept(name: str, needs: Iterator[str] | tuple[str, ...], make: Callable[[Path], str]) -> tuple[Path, str]:
    """Make an environment unless it is there already; return its folder, and why it could not be made."""
    digest = hashlib.sha256("\n".join(needs).encode()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{digest}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _locked(FOLDER / f"{name}.lock"):
        if not (folder / COMPLETE).exists():
            for old in FOLDER.glob(f"{name}-*"):
                shutil.rmtree(old)
            if problem := make(folder):
                shutil.rmtree(folder, ignore_errors=True)
                return folder, problem
            (folder / COMPLETE).touch()
    return folder, ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one test process at a time into the context."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lines(text: str) -> list[str]:
    """Return what a program complained about, line by line; at least one."""
    return [line for line in text.splitlines() if line.strip() and "WARNING" not in line] or ["it said nothing"]


def quiet_environment() -> dict[str, str]:
    """This process's environment for programs that would otherwise ask the network, or report to somebody."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
