"""The benchmark: it runs, and its results are consistent. No timing is asserted."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from servers import ROOT, Server

from rill.bench.command import main
from rill.bench.cores import on_core, two_cores
from rill.bench.open import WARM_UP, arrivals
from rill.bench.peers import installed_peers
from rill.bench.run import Parts
from rill.cli.progress import ProgressBar

KEYS = {
    "command", "machine", "versions", "bundle", "settings", "server", "floors", "loads", "idle", "newcomer", "open",
    "peers", "profile", "notes",
}  # fmt: skip
RATIOS = {"ratio_to_decode": "decode", "ratio_to_step": "step", "ratio_to_eager": "eager"}
LATENCIES = ("first_character_ms", "inter_character_us", "queued_ms")


def require_order(*values: dict[str, float | None]) -> None:
    """Check that percentiles are all present or all absent, and in order."""
    for value in values:
        assert list(value) == ["p50", "p90", "p99", "max"]
        numbers = [number for number in value.values() if number is not None]
        assert len(numbers) in (0, 4)
        assert numbers == sorted(numbers)
        assert all(number >= 0 for number in numbers)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Run everything once, peers included, with few windows and streams: its output, its JSON, its plot."""
    folder, out = tmp_path_factory.mktemp("bench"), io.StringIO()
    arguments = [
        "--bundle", str(tiny_folder), "--json", str(folder / "bench.json"), "--plot", str(folder / "bench.png"),
        "--peers", "--streams", "1", "3", "--seconds", "0.2", "--max-chars", "200", "--rates", "25", "200",
        "--mixes", "mixed", "prompt-heavy",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        for name, value in (
            ("closed.WINDOWS", 2),
            ("run.WINDOWS", 2),
            ("run.PEER_STREAMS", (1, 3)),
            ("run.PROFILE_STREAMS", (1, 4)),
            ("run.NEWCOMER_STREAMS", 4),
            ("idle.WARM_UP", 2),
        ):
            patch.setattr(f"rill.bench.{name}", value)
        patch.setenv("http_proxy", "http://127.0.0.1:1")  # which nothing here may use
        assert main(arguments) == 0
    return out.getvalue(), json.loads((folder / "bench.json").read_text(encoding="utf-8")), folder / "bench.png"


@pytest.mark.long
def test_a_run_reports_all_its_parts(whole: tuple[str, dict[str, Any], Path]) -> None:
    printed, found, image = whole
    for label in (
        "decode graph", "ORT step", "PyTorch eager", "characters/s", "first character", "server CPU", "peers",
        "listening after", "ping-pong", "mixed texts", "prompt-heavy texts", "MLServer",
    ):  # fmt: skip
        assert label in printed
    assert set(found) == KEYS
    assert found["command"].startswith("rill bench --bundle ")
    assert found["machine"]["cores"] >= 1
    assert found["bundle"]["name"] == "tiny"
    assert found["settings"]["objective"] == {"first_ms": 50, "character_ms": 5}
    assert found["server"]["started_here"]
    assert found["server"]["start_seconds"] > 0
    assert 10 < found["server"]["rest_megabytes"] <= found["server"]["peak_megabytes"]
    assert any("MLServer" in note for note in found["notes"])
    assert [profile["streams"] for profile in found["profile"]] == [1, 4]
    for profile in found["profile"]:
        assert profile["characters"] >= profile["messages"] >= 1
        assert 0 < profile["us_per_character"]["run"] <= profile["us_per_round"]["run"]
        assert "where the server's time goes" in printed
    assert image.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def require_load(load: dict[str, Any], cores: int) -> None:
    """Check what holds for every closed loop."""
    speed = load["characters_per_second"]
    assert load["seconds"] >= 0.2
    assert speed == pytest.approx(load["messages_per_second"] * load["characters_per_message"])
    assert load["characters_per_message"] >= 1
    require_order(*(load[name] for name in LATENCIES))
    assert load["inter_character_us"]["max"] > 0
    assert 0 <= load["on_time_characters_per_second"] <= speed * (1 + 1e-9)
    assert (load["on_time_texts"] is None) == (load["texts"] == 0)
    assert 0 <= (load["on_time_texts"] or 0) <= 1
    assert 0 <= load["slowest_to_mean"] <= 1
    assert load["server_cpu_us_per_character"] > 0
    assert load["server_megabytes"] > 10
    assert 0 < load["client_cpu_share"] <= cores
    assert 0 <= load["other_cores"] <= cores
    assert len(load["windows"]) == len(load["cpu_windows"]) == 2
    assert min(load["windows"]) * 0.99 < speed < max(load["windows"]) * 1.01


@pytest.mark.long
def test_closed_loops_are_consistent_with_the_floors(whole: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = whole
    floors = {(floor["name"], floor["batch"]): floor for floor in found["floors"]}
    assert set(floors) == {(name, batch) for name in RATIOS.values() for batch in (1, 3)}
    for floor in floors.values():
        assert len(floor["samples"]) == 3
        assert min(floor["samples"]) <= floor["characters_per_second"] <= max(floor["samples"])
        assert floor["cpu_us_per_character"] > 0
    for load, streams in zip(found["loads"], (1, 3), strict=True):
        assert load["streams"] == streams
        require_load(load, found["machine"]["cores"])
        rest = found["server"]["rest_megabytes"]
        assert load["kilobytes_per_stream"] == pytest.approx(1e3 * (load["server_megabytes"] - rest) / streams)
        for ratio, name in RATIOS.items():
            samples = floors[name, streams]["samples"]
            assert min(load["windows"]) / max(samples) <= load[ratio] <= max(load["windows"]) / min(samples)
        assert load["cpu_ratio_to_decode"] > 0


@pytest.mark.long
def test_waits_are_consistent(whole: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = whole
    for wait, streams in ((found["idle"], 0), (found["newcomer"], 4)):
        assert wait["streams"] == streams
        assert wait["texts"] > 0
        require_order(wait["ping_ms"], wait["first_character_ms"])
        assert wait["ratio"] == pytest.approx(wait["first_character_ms"]["p50"] / wait["ping_ms"]["p50"])


@pytest.mark.long
def test_open_loops_are_consistent(whole: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = whole
    expected = [(mix, percent) for mix in ("mixed", "prompt-heavy") for percent in (25, 200)]
    assert [(rate["mix"], rate["percent"]) for rate in found["open"]] == expected
    for rate in found["open"]:
        assert rate["offered"] == rate["completed"] + rate["dropped"] + rate["refused"] + rate["unfinished"]
        assert rate["offered_texts_per_second"] == pytest.approx(rate["offered"] / 0.2)
        require_order(*(rate[name] for name in LATENCIES))
        assert 0 <= rate["on_time_texts"] <= rate["completed"] / max(rate["offered"], 1)
        assert rate["client_cpu_share"] > 0
        assert rate["client_lag_ms"]["max"] >= 0
        texts_per_second = rate["capacity_texts_per_second"] * rate["percent"] / 100
        due = arrivals(np.random.default_rng(0), texts_per_second, (WARM_UP + 1) * 0.2)
        assert rate["offered"] == sum(moment >= WARM_UP * 0.2 for moment in due)


@pytest.mark.long
def test_peers_are_measured_like_the_server(whole: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = whole
    assert [(peer["name"], peer["streams"]) for peer in found["peers"]] == [
        (name, streams) for name in installed_peers() for streams in (1, 3)
    ]
    for peer in found["peers"]:
        require_load(peer, found["machine"]["cores"])
        assert peer["characters_per_message"] == 1
        assert peer["ratio_to_decode"] > 0


def test_a_part_measures_itself_alone(tiny_folder: Path, tmp_path: Path) -> None:
    path, image = tmp_path / "floor.json", tmp_path / "floor.svg"
    command = [sys.executable, "-W", "error", "-m", "rill.bench", "--bundle", str(tiny_folder)]
    command += ["--streams", "2", "--seconds", "0.1", "--json", str(path), "--plot", str(image), "floor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == KEYS
    assert [floor["name"] for floor in found["floors"]] == ["decode", "step", "eager"]
    assert found["server"] is None
    assert found["loads"] == found["open"] == found["peers"] == found["profile"] == []
    assert "PyTorch eager" in done.stdout
    assert "over gRPC" not in done.stdout
    assert "<svg" in image.read_text(encoding="utf-8")


def test_a_running_server_can_be_measured(
    server: Server, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rill.bench.closed.WINDOWS", 2)
    monkeypatch.setattr("rill.bench.idle.WARM_UP", 2)
    monkeypatch.setattr("rill.bench.run.NEWCOMER_STREAMS", 4)
    path = tmp_path / "target.json"
    arguments = ["--target", server.target, "--streams", "2", "--seconds", "0.2", "--json", str(path)]
    assert main(["load", "--bundle", str(tiny_folder), *arguments]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["server"]["target"] == server.target
    assert not found["server"]["started_here"]
    assert found["settings"]["server_core"] is None
    assert found["loads"][0]["server_cpu_us_per_character"] is None
    assert "cpu_ratio_to_decode" not in found["loads"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_server_of_two_processes_is_measured_as_one(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("closed.WINDOWS", 2), ("idle.WARM_UP", 2), ("run.NEWCOMER_STREAMS", 4)):
        monkeypatch.setattr(f"rill.bench.{name}", value)
    path = tmp_path / "engines.json"
    arguments = ["--engines", "2", "--streams", "32", "--seconds", "0.2", "--json", str(path)]
    assert main(["load", "--bundle", str(tiny_folder), *arguments]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["settings"]["engines"] == 2
    assert found["settings"]["server_core"] is None
    assert found["server"]["peak_megabytes"] >= found["server"]["rest_megabytes"] > 3 * 20  # three processes
    require_load(found["loads"][0], found["machine"]["cores"])


def test_what_cannot_be_measured_is_one_clear_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, line in [
        (["--bundle", str(tmp_path)], f"error: {tmp_path} is not a bundle"),
        (["--bundle", str(tiny_folder), "--target", "127.0.0.1:1"], "error: no server listens at 127.0.0.1:1 "),
        (["load", "--bundle", str(tiny_folder), "--device", "gpu"], "error: --device 'gpu' "),
    ]:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(line)
        assert printed.err.count("\n") == 1
        assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--streams", "0"], "--streams must be from 1 to 4096"),
        (["--seconds", "0"], "--seconds must be more than 0"),
        (["--seconds", "nan"], "--seconds must be more than 0"),
        (["--max-chars", "0"], "--max-chars must be at least 1"),
        (["--rates", "50", "0"], "--rates must be more than 0"),
        (["--objective", "-1", "5"], "--objective must be two times"),
        (["--mixes", "sour"], "invalid choice: 'sour'"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["--target", "a:1", "--pin"], "--pin and --round-milliseconds are for"),
        (["--target", "a:1", "--round-milliseconds", "5"], "--pin and --round-milliseconds are for"),
        (["profile", "--target", "a:1"], "profile needs a server that is started here"),
        (["load", "--engines", "0"], "--engines must be at least 1"),
        (["load", "--engines", "2", "--pin"], "--engines is for a server that is started here, without --pin"),
        (["profile", "--engines", "2"], "--engines is for a server that is started here, without --pin or profile"),
        (["open", "--peers"], "--peers goes with the part load"),
        (["--json", "nowhere/x.json"], "there is no folder nowhere"),
        (["--plot", "nowhere/x.png"], "there is no folder nowhere"),
        (["--plot", "x.txt"], "it must end in .png"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--bundle", "b", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert line in said


@pytest.mark.skipif(two_cores() is None, reason="needs two cores")
def test_pinning_is_undone(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, cores = os.sched_getaffinity(0), []

    async def floor(self: Parts) -> None:
        cores.append(os.sched_getaffinity(0))
        raise OSError("enough")

    monkeypatch.setattr(Parts, "floor", floor)
    assert main(["floor", "--bundle", str(tiny_folder)]) == 2
    assert main(["floor", "--bundle", str(tiny_folder), "--no-pin"]) == 2
    assert capsys.readouterr().err == "error: enough\n" * 2
    own, client = two_cores() or (0, 0)
    assert own != client
    assert cores == [{client}, before]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(KeyError), on_core(own):
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_the_help_loads_no_model_runtime() -> None:
    program = """
import sys
from rill.cli.main import main
try:
    main(["bench", "--help"])
finally:
    print("loaded", *{"torch", "onnxruntime", "numpy", "grpc", "rich", "psutil"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: rill bench ")
    assert done.stdout.splitlines()[-1] == "loaded"


def test_a_bar_without_a_terminal_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(2) as bar:
        bar.describe("something")
        bar.advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", ["SIGHUP", pytest.param("SIGINT", marks=pytest.mark.long)])
def test_a_signal_ends_the_server_too(tiny_folder: Path, number: str) -> None:
    if number == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("these tests were started to outlive their terminal (nohup), and so was the benchmark")
    command = [sys.executable, "-m", "rill.bench", "--bundle", str(tiny_folder), "--streams", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while not (children := watched.children()):
            assert process.poll() is None
        process.send_signal(getattr(signal, number))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted\n"
    assert not any(child.is_running() for child in children)
