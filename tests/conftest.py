"""What the tests share: small models with random weights, their bundles, and real servers in processes of their own."""

import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.bundle import Bundle, manifest_of, write_bundle
from export.export import build_bundle
from export.verify import Parity
from serve.client import Client
from train.config import ModelConfig, TrainingConfig
from train.model import CharacterModel
from train.run import Run, RunConfig, save_config, save_weights
from train.vocab import Vocabulary

ROOT = Path(__file__).parent.parent
# Where a shell runs the tests in the background it ignores Ctrl-C for them, and for all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny models gain nothing from threads, and lose much where cores are shared

LETTERS = tuple(sorted(string.ascii_letters + " \n.,é"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests run where there is a GPU, and say why not elsewhere."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))


def make_run(symbols: tuple[str, ...] = LETTERS, seed: int = 0, **config: object) -> Run:
    """A run in memory: a model with random weights, its output layer scaled so that texts are varied but no noise."""
    torch.manual_seed(seed)
    model_config = ModelConfig(**{"hidden": 32, **config})  # type: ignore[arg-type]
    model = CharacterModel(model_config, len(symbols))
    with torch.no_grad():
        model.linear.weight *= 6
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Run(Path("tiny"), model_config, TrainingConfig(steps=1), Vocabulary(symbols), (), weights)


def save_run(run: Run, folder: Path) -> Path:
    """The run as a run folder on disk."""
    folder.mkdir(parents=True)
    save_config(folder, RunConfig(run.model, run.training, run.vocabulary))
    save_weights(folder, run.build())
    return folder


def save_bundle(run: Run, folder: Path) -> Bundle:
    """The run's bundle on disk, unverified: what verification does has tests of its own."""
    bundle = build_bundle(run, folder.name)
    write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
    return bundle


SENTENCES = "the time traveller for so it will be convenient to speak of him was expounding a recondite matter to us\n"


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
        patch.setattr("train.trainer.draw_curves", lambda *paths: None)
        patch.setattr("train.trainer.SAMPLE_LENGTH", 5)
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without their verification: it takes most of their time, and has tests of its own."""
    monkeypatch.setattr("export.export.verify", lambda bundle, run: Parity(0, 0, 0, 0, 0))


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


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Poll until `condition` holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Server:
    """A server process that is listening."""

    process: subprocess.Popen[str]
    target: str
    line: str

    @property
    def port(self) -> str:
        return self.target.rpartition(":")[2]

    def client(self) -> Client:
        return Client(self.target)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it and wait: its exit status and what it logged."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@contextmanager
def run_server(*arguments: object, program: Sequence[str] = ("-m", "serve")) -> Iterator[Server]:
    """`python -m serve ARGUMENTS --port 0`, from its listening line to its end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", *program, *map(str, arguments), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.fullmatch(r"rill: listening on (\S+:\d+) \(models: .*; provider: \w+\)\n", line)
            if not found:
                process.kill()
                raise AssertionError(f"the server did not start: {line!r} {process.communicate()[1]!r}")
            yield Server(process, found[1], line)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()


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
