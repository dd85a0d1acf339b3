"""What the sdist and the wheel contain, and what a checkout without links says."""

import subprocess
import sys
import tarfile
import zipfile

import pytest
from archives import unpack
from environments import Builds, clean_environment
from servers import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PARTS = ("train", "export", "serve", "bench", "gateway")
COMMITTED = ("ls-tree", "-r", "--name-only", "HEAD")


def _wanted(git: str, *command: str) -> set[str]:
    """Files of the wheel, by those that `git COMMAND` names."""
    names = subprocess.run([git, *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {name for name in names if name.startswith("rill/")} - {f"rill/{part}" for part in PARTS}
    wanted |= {f"rill/{name}" for name in names if name.startswith(tuple(f"{part}/" for part in PARTS))}
    return {name for name in wanted if not name.startswith("rill/export/matrix/")}


def _found(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def _build(source, folder):
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True, env=clean_environment())
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_rill_and_nothing_else(builds: Builds, git, measured):
    found = _found(builds.wheel)
    assert found == _wanted(git, "ls-files")
    assert "rill/py.typed" in found
    measured(f"wheel: {builds.wheel.stat().st_size / 1000:,.0f} kB, {len(found)} files")
    measured(f"sdist: {builds.sdist.stat().st_size / 1000:,.0f} kB")


def test_the_wheel_from_the_sdist_equals_the_wheel_from_the_checkout(builds: Builds, tmp_path):
    assert _build(ROOT, tmp_path).read_bytes() == builds.wheel.read_bytes()


def test_an_archive_by_git_is_as_good_as_the_sdist(git, tmp_path):
    with (
        subprocess.Popen([git, "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        unpack(archive, tmp_path / "source")
    assert _found(_build(tmp_path / "source", tmp_path / "dist")) == _wanted(
        git, "ls-tree", "-r", "--name-only", "HEAD"
    )


def test_a_checkout_without_links(git, tmp_path):
    """It builds the same wheel; an editable install, make, and the commands say in one sentence what is wrong."""
    source = tmp_path / "source"
    subprocess.run([git, "clone", "-q", "-c", "core.symlinks=false", ROOT, source], check=True, capture_output=True)
    assert (source / "rill" / "serve").is_file()
    assert _found(_build(source, tmp_path / "dist")) == _wanted(git, *COMMITTED)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        arguments = list(map(str, command))
        environment = clean_environment()
        return subprocess.run(arguments, cwd=source, env=environment, capture_output=True, text=True, check=False)

    make = run("make", "test", f"PYTHON={sys.executable}")
    assert make.returncode == 2
    assert "rill/serve is not a link to serve/" in make.stderr + make.stdout
    assert not (source / ".venv").exists()

    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--target",
        tmp_path / "target",
        "--editable",
        source,
    ]
    editable = run(*command)
    assert editable.returncode == 1
    assert "an editable install cannot work" in editable.stderr

    serve = run(sys.executable, "-m", "rill.serve", "--help")
    assert serve.returncode == 1
    assert "No module named rill.serve" in serve.stderr
    program = "import sys; from rill.programs import run; sys.exit(run('serve', []))"
    programs = run(sys.executable, "-c", program)
    assert programs.returncode == 2
    assert programs.stderr.startswith("error: rill/serve is not a link to serve/")
    assert programs.stderr.count("\n") == 1
