"""Profiles: from a server that writes one, and from one that does not."""

import json
import sys
from pathlib import Path

import pytest
from servers import ROOT

from rill.bench import BenchError
from rill.bench.command import main
from rill.bench.plot import draw
from rill.bench.profile import COUNTS, ENGINE, LOOP, read_profile

WRITTEN = {
    "rounds": 100,
    "steps": 1600,
    "characters": 50_000,
    "messages": 4000,
    "elapsed_seconds": 10.0,
    "seconds": {stage: 0.1 * (index + 1) for index, stage in enumerate(ENGINE + LOOP)},
}

# `python -m rill.serve`, with a profile that it makes up.
PROFILED = f"""
import json, sys
place = sys.argv.index("--profile")
path = sys.argv[place + 1]
del sys.argv[place : place + 2]
from rill.serve.command import main
status = main(sys.argv[1:])
with open(path, "w") as file:
    json.dump({WRITTEN!r}, file)
sys.exit(status)
"""


def test_a_profile_is_divided_by_rounds_and_characters(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(WRITTEN))
    profile = read_profile(path, 64)
    assert (profile.streams, profile.rounds, profile.elapsed_seconds) == (64, 100, 10.0)
    assert profile.us_per_round["schedule"] == pytest.approx(1000)
    assert profile.us_per_character["write"] == pytest.approx(18)
    assert list(profile.seconds) == list(profile.us_per_round) == [*ENGINE, *LOOP]


@pytest.mark.parametrize("key", [*COUNTS, "seconds", "elapsed_seconds"])
def test_a_profile_that_lacks_something_is_an_error(key: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({name: value for name, value in WRITTEN.items() if name != key}))
    with pytest.raises(BenchError, match=f"no readable profile: KeyError: '{key}'"):
        read_profile(path, 1)


def test_no_profile_and_an_empty_one_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(BenchError, match="no readable profile: FileNotFoundError"):
        read_profile(path, 1)
    path.write_text("{")
    with pytest.raises(BenchError, match="no readable profile: JSONDecodeError"):
        read_profile(path, 1)
    path.write_text(json.dumps(WRITTEN | {"rounds": 0}))
    with pytest.raises(BenchError, match="no rounds"):
        read_profile(path, 1)


def test_a_server_is_loaded_and_its_profile_is_shown(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, path, image = tmp_path / "profiled.py", tmp_path / "found.json", tmp_path / "found.png"
    program.write_text(PROFILED)
    monkeypatch.setattr("rill.bench.server.SERVE", (sys.executable, str(program)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["--seconds", "0.2", "--json", str(path), "--plot", str(image)]
    assert main(["profile", "--bundle", str(tiny_folder), *arguments]) == 0
    printed = capsys.readouterr().out
    for said in ("engine thread", "hand over", "event loop", "serialise", "100 rounds of 16.0 steps"):
        assert said in printed
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [profile["streams"] for profile in found["profile"]] == [1, 64]
    for profile in found["profile"]:
        assert profile["seconds"] == pytest.approx(WRITTEN["seconds"])
        for stage, seconds in profile["seconds"].items():
            assert profile["us_per_round"][stage] == pytest.approx(1e6 * seconds / profile["rounds"])
            assert profile["us_per_character"][stage] == pytest.approx(1e6 * seconds / profile["characters"])
    assert found["loads"] == found["floors"] == []
    assert image.stat().st_size > 1000
    with (tmp_path / "again.pdf").open("wb") as file:
        draw(found, file, "pdf")


def test_a_server_that_knows_no_timers_is_one_clear_line(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rill.bench.run.FLAG", "--no-such-flag")
    assert main(["profile", "--bundle", str(tiny_folder), "--seconds", "0.2"]) == 2
    assert capsys.readouterr().err == "error: this version of the server has no --no-such-flag\n"
