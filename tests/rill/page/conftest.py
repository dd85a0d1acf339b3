"""Pages and what they need."""

import shutil

import pytest
from npm_packages import fake_package
from outside import node_modules
from random_models import MOLECULES, make_run, save_bundle

from rill.cli.main import main
from rill.page.runtime import PACKAGE
from rill.vocabulary import UNKNOWN

ASTRAL = (*"\n abcdefgh,.é", "漢", "😀", "𝔸")
MODELS = {
    "gru": {},
    "gru-before": {"reset": "before", "layers": 2},
    "lstm": {"cell": "lstm", "embedding": 8},
    "rnn": {"cell": "rnn", "symbols": (UNKNOWN, *"abcdefgh😀")},  # no line end
    "molecules": {"symbols": MOLECULES},
    "ngrams": {"ngrams": 3, "ngram_rows": 64, "embedding": 8, "symbols": (UNKNOWN, *sorted(ASTRAL))},
    "ngrams-molecules": {"cell": "lstm", "ngrams": 4, "ngram_rows": 64, "symbols": MOLECULES},
    "deep": {"layers": 3, "residual": True, "symbols": (UNKNOWN, *sorted(ASTRAL))},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return fake_package(tmp_path_factory.mktemp("npm") / "package")


@pytest.fixture(scope="session")
def onnxruntime_web():
    """The real package, of npm."""
    return node_modules("onnxruntime-web", {PACKAGE: "1.30.0"}) / PACKAGE


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Bundles of random models by their name, each with its folder."""
    folder = tmp_path_factory.mktemp("models")
    return {name: (save_bundle(make_run(**config), folder / name), folder / name) for name, config in MODELS.items()}


@pytest.fixture(scope="session")
def sites(models, onnxruntime_web, tmp_path_factory):
    """The written page of each model; Node reads its modules, too."""
    if not shutil.which("node"):
        pytest.skip("no node on this machine")
    root = tmp_path_factory.mktemp("sites")
    for name, (_, folder) in models.items():
        out = root / name
        assert main(["page", str(folder), "--out", str(out), "--onnxruntime-web", str(onnxruntime_web)]) == 0
        (out / "package.json").write_text('{"type": "module"}')
    return {name: root / name for name in models}
