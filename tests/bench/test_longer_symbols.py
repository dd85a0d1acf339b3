"""The benchmark of a model whose symbols are strings, with a start, an end and n-gram tables: all its parts run."""

import json
from pathlib import Path

import pytest
from random_models import MOLECULES, make_run, save_bundle

from rill.bench import http_gateway
from rill.bench.command import main
from rill.bench.floors import NAMES, Floors
from rill.bundle import Bundle


@pytest.fixture(scope="module")
def ngram_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "ngrams"
    save_bundle(make_run(MOLECULES, ngrams=3, ngram_rows=64), folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_floor_counts_what_the_model_does_not_end(name: str, molecules: Bundle) -> None:
    (floor,) = Floors(molecules).at(8, [name])
    counts = [floor.call() for _ in range(4)]
    assert all(0 < count <= floor.steps * 8 for count in counts)
    assert any(count < floor.steps * 8 for count in counts)


@pytest.mark.long
def test_all_parts_run(ngram_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("closed.WINDOWS", 2),
        ("run.WINDOWS", 2),
        ("run.PEER_STREAMS", (2,)),
        ("run.PROFILE_STREAMS", (2,)),
        ("run.NEWCOMER_STREAMS", 2),
        ("idle.WARM_UP", 2),
    ):
        monkeypatch.setattr(f"rill.bench.{name}", value)
    arguments = ["--peers", "--streams", "2", "--seconds", "0.4", "--rates", "50", "--mixes", "mixed"]
    assert main(["--bundle", str(ngram_folder), "--json", str(tmp_path / "bench.json"), *arguments]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [floor["name"] for floor in found["floors"]] == list(NAMES)
    assert found["loads"][0]["texts"] > 0  # the model ends them
    assert found["open"][0]["completed"] > 0
    assert len(found["peers"]) == 2


@pytest.mark.long
def test_events_are_counted_in_symbols(ngram_folder: Path, tmp_path: Path) -> None:
    """As the messages of gRPC are: few at a time, and not by the characters that they have."""
    arguments = ["--streams", "2", "--seconds", "0.8", "--windows", "2", "--json", str(tmp_path / "http.json")]
    assert http_gateway.main(["--bundle", str(ngram_folder), *arguments]) == 0
    (found,) = json.loads((tmp_path / "http.json").read_text())
    assert found["http"]["characters_per_second"] > 0
