"""Fixtures that many tests share; what they are made of is in tests/support."""

import os

# A process that is started with preexec_fn is forked, and gRPC's handlers of forks print in it or
# abort it. gRPC reads this at import.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from random_models import MOLECULES, SENTENCES, make_run, save_bundle
from servers import ROOT, Server, run_server

from rill.bundle import Bundle
from rill.export.graphs.build import build_bundle
from rill.export.parity.verify import Parity
from rill.train.record.run import Run

# Where a shell runs the tests in the background it ignores Ctrl-C for them, and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("on any machine", deadline=None)  # 200 ms pass where many programs share the cores
hypothesis.settings.load_profile("on any machine")
torch.set_num_threads(1)  # tiny models gain nothing from threads, and lose much where cores are shared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests run where there is a GPU, and say why not elsewhere."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Give signals their handlers again: `rill serve` in this process, even for its --help, takes them over."""
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the devices `null` and `full`, or links to them where only root may make some.

    A fault in what is tested here could replace a device by a file: for root, that of the whole machine.
    """
    folder = tmp_path_factory.mktemp("dev")
    for name, minor in (("null", 3), ("full", 7)):
        try:
            os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))  # numbers of Linux
            (folder / name).open("wb").close()
        except (OSError, AttributeError):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(f"/dev/{name}")
    return folder


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 1,040 characters, 24 of them distinct."""
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text(SENTENCES * 10)
    return path


@pytest.fixture(scope="module")
def quick_training() -> Iterator[None]:
    """Training without what only takes time where many tiny runs are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.train.loop.trainer.draw_curves", lambda *paths: None)
        patch.setattr("rill.train.loop.trainer.SAMPLE_LENGTH", 5)
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without their verification: it takes most of their time, and has tests of its own."""
    monkeypatch.setattr("rill.export.pipeline.verify", lambda bundle, run: Parity(0, 0, 0, 0, 0))


@pytest.fixture(scope="session")
def tiny_run() -> Run:
    return make_run()


@pytest.fixture(scope="session")
def tiny_folder(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder named `tiny`."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(tiny_run, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_run: Run) -> Bundle:
    return build_bundle(tiny_run, "tiny")


@pytest.fixture(scope="session")
def molecule_run() -> Run:
    """Random weights with the vocabulary MOLECULES; a text has 25 symbols on average until an end symbol."""
    return make_run(MOLECULES)


@pytest.fixture(scope="session")
def molecules(molecule_run: Run) -> Bundle:
    return build_bundle(molecule_run, "molecules")


@pytest.fixture(scope="session")
def molecule_folder(molecule_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle folder named `molecules`."""
    folder = tmp_path_factory.mktemp("bundles") / "molecules"
    save_bundle(molecule_run, folder)
    return folder


@pytest.fixture(scope="session")
def molecule_server(molecule_folder: Path) -> Iterator[Server]:
    """A server of `molecules` for the tests that leave it as they found it."""
    with run_server(molecule_folder) as running:
        yield running


@pytest.fixture(scope="session")
def server(tiny_folder: Path) -> Iterator[Server]:
    """A server of `tiny` for the tests that leave it as they found it."""
    with run_server(tiny_folder) as running:
        yield running


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE ARGUMENTS` to its end."""

    def run(module: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", module, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
