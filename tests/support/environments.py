"""Clean environments with Rill installed from its wheel."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from types import MappingProxyType

from servers import ROOT


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead a child to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


@dataclass
class Environment:
    """A virtual environment of its own."""

    folder: Path
    seconds: float  # that pip took

    def path(self, program: str) -> str:
        return str(self.folder / ("Scripts" if os.name == "nt" else "bin") / program)

    def run(
        self,
        program: str,
        *arguments: object,
        cwd: Path,
        status: int = 0,
        timeout: float = 180,
        stdin: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its programs and compare the exit status."""
        done = subprocess.run(
            [self.path(program), *map(str, arguments)],
            cwd=cwd,
            env=clean_environment() | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == status, f"{program} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def pip(self, *arguments: str) -> str:
        """Run the pip of this process on the environment, which has none; return what it prints."""
        command = [sys.executable, "-m", "pip", "--python", self.path("python"), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=clean_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def packages(self) -> dict[str, str]:
        """Versions by normalised distribution name."""
        found = dict(line.split("==") for line in self.pip("list", "--format", "freeze").splitlines() if "==" in line)
        return {name.lower().replace("_", "-"): version for name, version in found.items()}

    def megabytes(self) -> float:
        """Size of what was installed, as `du` counts it."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        done = subprocess.run(["du", "-sk", site], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[0]) / 1024


@dataclass
class Builds:
    """What `python -m build` makes of the checkout."""

    sdist: Path
    wheel: Path

    def requirement(self, extra: str = "") -> str:
        """For pip: the wheel, with an extra."""
        return f"{self.wheel}{f'[{extra}]' * bool(extra)}"

    def lower_bounds(self, *extras: str) -> list[str]:
        """The lowest versions that the wheel allows, as exact requirements."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            headers = HeaderParser().parsestr(archive.read(name).decode())
        bounds = {}
        for line in headers.get_all("Requires-Dist", []):
            requirement, _, marker = line.partition(";")
            wanted = "extra" not in marker or any(f"extra == '{extra}'" in marker for extra in extras)
            if wanted and ">=" in requirement and "platform" not in marker:
                package, _, version = requirement.strip().partition(">=")
                bounds[package.lower()] = version  # an extra's bound comes after, and is higher than, that of the base
        return [f"{package}=={version}" for package, version in bounds.items()]


def build(folder: Path) -> Builds:
    """Build the sdist, and from it the wheel, into `folder`."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env=clean_environment())
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Builds(sdist, wheel)


def create(
    folder: Path, requirements: Sequence[str], constrained: bool = True, python: str = sys.executable
) -> Environment:
    """Make an environment and install `requirements`, in the versions that development uses unless not constrained."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True, env=clean_environment())
    environment = Environment(folder, 0.0)
    constraint = ["--constraint", str(ROOT / "constraints.txt")] if constrained else []
    start = time.monotonic()
    environment.pip("install", "--quiet", *constraint, *requirements)
    environment.seconds = time.monotonic() - start
    return environment


def crowd(folder: Path) -> None:
    """Put modules of Rill's names into `folder`, as a project of its own may have; each raises when it is imported."""
    names = ["train.py", "bench.py", "client.py", "command.py", "config.py"]
    names += ["serve/__init__.py", "export/__init__.py", "protos/__init__.py"]
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the wrong module was imported: ' + __file__)\n")
