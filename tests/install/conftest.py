"""Builds, environments, and a report of what was measured."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Builds, Environment, build, create, crowd
from servers import ROOT

MEASURED: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, also where the tests passed."""
    if MEASURED:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(MEASURED))


@pytest.fixture(scope="session")
def measured() -> Callable[[str], None]:
    """Add a line to the figures that are printed at the end."""
    return MEASURED.append


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def base(builds: Builds, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel without extras."""
    return create(tmp_path_factory.mktemp("base"), [builds.requirement()])


@pytest.fixture(params=["empty", "crowded"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder outside the checkout: empty, or with modules of Rill's names that raise when they are imported."""
    if request.param == "crowded":
        crowd(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def git() -> str:
    program = shutil.which("git")
    if not program or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return program
