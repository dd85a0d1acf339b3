"""Bundles by earlier versions keep their graphs, ids and texts: those in tests/data are of 28 November 2026.

They are random models of 4 units, with portable graphs in opset 21, and an LSTM that computes its gates by Sigmoid.
"""

import tarfile
from pathlib import Path

import onnx
import pytest
from archives import unpack
from servers import run_server

from rill.bundle import read_bundle
from rill.cli.main import main as rill

BUNDLES = {
    "lstm-fp32": (
        "8e74c1c94eb0c4f7c606ed4d70fe959855c6957083a5e7e7766ced68a77a81bd",
        "ab aaabaa\n\nabaaaa\nbbbb\na\nabbbbab\n\n\naabaa\na\n\n\n\n\n\n\naa\nb\nbcaaa\n",
    ),
    "gru-int8": (
        "38dc103f9dac7ed4adcf5eb6b572c29371b0114aee2faca5e20aa66d9a93b30d",
        "aa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabaaaa",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(Path(__file__).parent.parent / "data" / "earlier-bundles.tar.xz") as archive:
        unpack(archive, folder)
    return folder


def test_they_are_read_as_they_are(folder):
    for name, (model_id, _) in BUNDLES.items():
        bundle = read_bundle(folder / name)
        assert bundle.model_id == model_id
        assert onnx.load_from_string(bundle.graphs["model"]).opset_import[0].version == 21


def test_they_are_served_with_their_ids_and_texts(folder):
    with run_server(folder) as server, server.client() as client:
        assert {model.name: model.model_id for model in client.models().models} == {
            name: model_id for name, (model_id, _) in BUNDLES.items()
        }
        for name, (_, text) in BUNDLES.items():
            assert "".join(client.generate("ab", max_chars=60, seed=7, model=name)) == text


@pytest.mark.long
def test_they_are_verified(folder, capsys):
    paths = [str(folder / name) for name in BUNDLES]
    assert rill(["verify", *paths, "--chars", "100", "--streams", "10"]) == 0
    assert "ok" in capsys.readouterr().out
