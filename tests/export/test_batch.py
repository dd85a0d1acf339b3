"""Several exports in one call: processes, Ctrl-C, --check, concurrent exporters, the report."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from random_models import LETTERS, make_run, save_bundle, save_run
from servers import ROOT, wait_until

from rill.bundle import MANIFEST, read_bundle
from rill.export import pipeline as exporting
from rill.export.batch import print_rows
from rill.export.command import main
from rill.export.graphs.build import build_bundle
from rill.export.jobs import Job
from rill.export.lock import exclusive
from rill.export.parity.int8_loss import Loss
from rill.export.pipeline import Exported
from rill.export.results import Row
from rill.train.record.run import load_run


@pytest.fixture
def run_folder(tmp_path, tiny_run):
    return save_run(tiny_run, tmp_path / "runs" / "tiny")


def hanging_run(run, folder):
    """A run folder on which an export hangs until the test releases it: its weights are a pipe."""
    save_run(run, folder)
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    return folder


@contextmanager
def hung(process, folder):
    """The pid of the process that hangs on `folder`: `process` or one of its children."""
    pipe = folder / "model.safetensors"
    pids, writers = [], []

    def reading():
        if not writers:
            with suppress(OSError):  # no process reads it yet
                writers.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        for each in [process, *process.children(recursive=True)]:
            with suppress(OSError):
                files = [os.readlink(link) for link in Path(f"/proc/{each.pid}/fd").iterdir()]
                pids.extend([each.pid] * (str(pipe) in files))
        return bool(pids)

    try:
        wait_until(reading, seconds=60)
        yield pids[0]
    finally:
        for writer in writers:
            os.close(writer)


UNVERIFIED = """
import sys
from rill.export import pipeline
from rill.export.command import main
from rill.export.parity.verify import Parity

pipeline.verify = lambda *_: Parity(0, 0, 0, 0, 0)
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments, program=("-m", "rill.export"), **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", *program, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        start_new_session=True,  # a process group of its own, which is what Ctrl-C in a terminal signals
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def test_exports_many_runs_and_continues_after_a_bad_one(tmp_path, run_folder, tiny_run, capsys, unverified):
    other = save_run(make_run(layers=2, embedding=4, seed=1), tmp_path / "runs" / "other")
    out, report = tmp_path / "bundles", tmp_path / "report.json"
    arguments = [str(each) for each in (run_folder, tmp_path / "missing", other, "--out", out, "--json", report)]
    assert main(arguments) == 1
    assert "missing is not a run folder" in capsys.readouterr().err
    rows = json.loads(report.read_text())
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert sorted(path.name for path in out.iterdir()) == ["other", "tiny"]

    bundle = read_bundle(out / "tiny")
    assert bundle.name == "tiny"
    assert bundle.vocabulary == tiny_run.vocabulary
    manifest = json.loads((out / "tiny" / MANIFEST).read_text())
    assert manifest["states"] == [{"name": "state_h", "next": "next_state_h", "shape": [1, "batch", 32]}]

    before = {path: path.stat().st_mtime_ns for path in (out / "tiny").iterdir()}
    assert main([str(run_folder), "--out", str(out)]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (out / "tiny").iterdir()}


@pytest.mark.long
def test_processes_write_the_same_bytes(tmp_path, run_folder):
    last, out = save_run(make_run(cell="rnn", hidden=8), tmp_path / "runs" / "last"), tmp_path / "out"
    assert main([str(run_folder), str(last), "--out", str(out), "--jobs", "2"]) == 0
    for folder in (run_folder, last):
        assert read_bundle(out / folder.name) == build_bundle(load_run(folder), folder.name)


@pytest.mark.long  # test_pool.py has the same without PyTorch
def test_a_killed_process_fails_its_own_run_only(tmp_path, run_folder):
    killed = hanging_run(make_run(), tmp_path / "runs" / "killed")
    last = save_run(make_run(seed=1), tmp_path / "runs" / "last")
    out, report = tmp_path / "out", tmp_path / "report.json"
    runs = [killed, tmp_path / "missing", run_folder, last]
    with start(*runs, "--out", out, "--jobs", 2, "--json", report) as process:
        with hung(psutil.Process(process.pid), killed) as pid:
            assert pid != process.pid
            os.kill(pid, signal.SIGKILL)
        printed, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    rows = json.loads(report.read_text())
    assert [row["run"] for row in rows] == [str(run) for run in runs]
    assert [row["status"] for row in rows] == ["failed", "failed", "ok", "ok"]
    assert rows[0]["error"] == "its process was killed (SIGKILL); if memory ran out, use fewer --jobs"
    assert "missing is not a run folder" in rows[1]["error"]
    assert sorted(errors.splitlines()) == sorted(f"error: {row['run']}: {row['error']}" for row in rows[:2])
    assert f"{last}: matches PyTorch: " in printed
    assert sorted(path.name for path in out.iterdir()) == ["last", "tiny"]


@pytest.mark.long  # test_pool.py has the same without PyTorch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_and_leaves_nothing(tmp_path, number):
    runs = [hanging_run(make_run(), tmp_path / name) for name in ("a", "b", "c")]
    with start(*runs, "--out", tmp_path / "out", "--jobs", 2) as process:
        first = psutil.Process(process.pid)
        with hung(first, runs[0]), hung(first, runs[1]):
            children = first.children(recursive=True)
            assert len(children) >= 2
            sent = time.monotonic()
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # all of them, as a terminal does
            else:
                os.kill(process.pid, number)
            printed, errors = process.communicate(timeout=60)
            wait_until(lambda: not any(child.is_running() for child in children))
            assert time.monotonic() - sent < 15
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert (printed, errors) == ("", "interrupted\n" if number == signal.SIGINT else "")
    assert not (tmp_path / "out").exists()


def test_a_terminal_shows_the_step_of_each_job_and_a_pipe_gets_lines_only(tmp_path):
    """Ctrl-C also works without --jobs."""
    run = hanging_run(make_run(), tmp_path / "a")
    ours, theirs = os.openpty()
    with start(tmp_path / "missing", run, "--out", tmp_path / "out", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with hung(psutil.Process(process.pid), run) as pid:
            assert pid == process.pid
            deadline = time.monotonic() + 20
            while not (b"reading the run" in shown and b"1/2" in shown) and time.monotonic() < deadline:
                shown += os.read(ours, 65536)  # the bar is drawn four times a second
            os.killpg(process.pid, signal.SIGINT)
            with suppress(OSError):  # the other end is closed
                while more := os.read(ours, 65536):
                    shown += more
        assert process.wait(timeout=20) == 130
        assert process.stdout.read() == ""
    os.close(ours)
    assert b"exports" in shown
    assert b"reading the run" in shown
    assert b"1/2" in shown
    assert shown.decode().replace("\r\n", "\n").endswith("interrupted\n")


def test_a_reader_that_leaves_stops_nothing(tmp_path, run_folder):
    with start(run_folder, "--out", tmp_path / "out", program=("-c", UNVERIFIED)) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    assert read_bundle(tmp_path / "out" / "tiny").name == "tiny"


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_check_reports_each_bundle_and_writes_nothing(tmp_path, tiny_run, unverified):
    names = ["good", "changed", "missing", "damaged", "empty", "crooked"]
    runs = [save_run(tiny_run, tmp_path / "runs" / name) for name in names]
    out, report = tmp_path / "out", tmp_path / "report.json"
    for name in names:
        save_bundle(make_run(seed=9) if name == "changed" else tiny_run, out / name)
    for file in [*(out / "missing").iterdir(), *(out / "empty").iterdir()]:
        file.unlink()
    (out / "missing").rmdir()
    with (out / "damaged" / "decode.onnx").open("ab") as file:
        file.write(b"x")
    manifest = json.loads((out / "crooked" / MANIFEST).read_text())
    (out / "crooked" / MANIFEST).write_text(json.dumps(manifest | {"precision": "int8"}))

    before = contents(tmp_path)
    assert main([*map(str, runs), "--out", str(out), "--check", "--json", str(report)]) == 1
    rows = json.loads(report.read_text())
    report.unlink()
    assert {path: kept for path, kept in contents(tmp_path).items() if path != report} == before
    assert [row["status"] for row in rows] == ["ok"] + ["failed"] * 5
    reasons = [
        "changed differs from its run: export it again with --force",
        "missing is missing: export the run",
        "decode.onnx is damaged: its checksum differs from the manifest; export the run again",
        "it has no manifest.json",
        "crooked differs from its run",
    ]
    for row, reason in zip(rows[1:], reasons, strict=True):
        assert reason in row["error"]

    assert main([str(runs[0]), "--out", str(out), "--check"]) == 0
    assert main([str(runs[0]), "--out", str(tmp_path / "nowhere"), "--check"]) == 1
    assert not (tmp_path / "nowhere").exists()


def test_check_verifies_the_bytes_on_disk(tmp_path, run_folder, tiny_run, monkeypatch):
    save_bundle(tiny_run, tmp_path / "out" / "tiny")
    verified = []
    verify = exporting.verify
    monkeypatch.setattr(exporting, "verify", lambda bundle, *rest: verified.append(bundle) or verify(bundle, *rest))
    read = []
    monkeypatch.setattr(exporting, "read_bundle", lambda folder: read.append(read_bundle(folder)) or read[-1])
    exporting.export_run(run_folder, tmp_path / "out", check=True)
    assert verified[0] is read[0]


def test_exporters_of_one_bundle_wait_for_each_other(tmp_path, run_folder, unverified):
    waiting = threading.Event()
    with exclusive(tmp_path / "out" / "tiny"):
        options = {"on_progress": lambda step: step == "writing" and waiting.set()}
        thread = threading.Thread(target=exporting.export_run, args=(run_folder, tmp_path / "out"), kwargs=options)
        thread.start()
        assert waiting.wait(60)
        thread.join(0.3)
        assert thread.is_alive()
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".tiny.lock"]
    thread.join(20)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


def test_a_bundle_that_appears_during_verification_is_not_overwritten(tmp_path, run_folder, unverified, monkeypatch):
    verify = exporting.verify

    def export_and_verify(*arguments):
        save_bundle(make_run(seed=9), tmp_path / "out" / "tiny")
        return verify(*arguments)

    monkeypatch.setattr(exporting, "verify", export_and_verify)
    with pytest.raises(exporting.BundleError, match="holds a different bundle"):
        exporting.export_run(run_folder, tmp_path / "out")
    assert read_bundle(tmp_path / "out" / "tiny").model_id == build_bundle(make_run(seed=9), "tiny").model_id


WRITER = """
import sys
from pathlib import Path
from rill.bundle import read_bundle
from rill.export.write import manifest_of, write_bundle
from rill.export.graphs.build import build_bundle
from rill.export.lock import exclusive

bundle, folder = read_bundle(sys.argv[1]), Path(sys.argv[2])
for _ in range(15):
    with exclusive(folder):
        if folder.exists():
            read_bundle(folder)
        write_bundle(bundle, manifest_of(bundle, {}, {}), folder)
"""


@pytest.mark.long
def test_concurrent_writers_leave_one_whole_bundle(tmp_path, tiny_run):
    sources = [tmp_path / name / "tiny" for name in "abc"]
    for seed, source in enumerate(sources):
        save_bundle(make_run(seed=seed), source)
    target = tmp_path / "out" / "tiny"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, source, target], cwd=ROOT, stderr=subprocess.PIPE)
        for source in sources
    ]
    for process in processes:
        assert process.communicate(timeout=60) == (None, b"")
    assert read_bundle(target) in [read_bundle(source) for source in sources]
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


def test_concurrent_commands_with_namesakes(tmp_path, run_folder, unverified):
    other = save_run(make_run(seed=9), tmp_path / "others" / "tiny")
    out = tmp_path / "out"
    processes = [start(run, "--out", out, program=("-c", UNVERIFIED)) for run in (run_folder, other)]
    errors = [process.communicate(timeout=90)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 1]
    assert "holds a different bundle; replace it with --force" in "".join(errors)
    winner = (run_folder, other)[[process.returncode for process in processes].index(0)]
    assert exporting.export_run(winner, out).unchanged
    assert [path.name for path in out.iterdir()] == ["tiny"]


def test_each_run_is_exported_once_and_namesakes_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = ["a", "./a", "a-int8", "b/a", "a/"]  # none exists
    assert main([*runs, "--out", "out", "--precision", "fp32", "int8", "fp32", "--json", "report.json"]) == 1
    rows = json.loads(Path("report.json").read_text())
    same = "the bundle of a has the same name; give them different --out folders"
    missing = "{0} is not a run folder: no such folder; train one with rill train --out {0}"
    assert [(row["run"], row["precision"], row["error"]) for row in rows] == [
        ("a", "fp32", missing.format("a")),
        ("a", "int8", missing.format("a")),
        ("a-int8", "fp32", same),
        ("a-int8", "int8", missing.format("a-int8")),
        ("b/a", "fp32", same),
        ("b/a", "int8", same),
    ]
    assert f"error: a (int8): {missing.format('a')}\n" in capsys.readouterr().err
    assert not Path("out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


KEYS = (
    "run precision bundle bytes difference bits_per_char bits_per_char_fp32 loss_measured_on parity notes status error "
    "seconds"
)


def test_the_report(tmp_path, run_folder, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    report.write_text("an older one")
    assert main([str(run_folder), "--out", str(out), "--json", str(report)]) == 0
    (row,) = json.loads(report.read_text())
    assert list(row) == KEYS.split()
    assert row["bundle"] == str(out / "tiny")
    assert row["bytes"] == sum(path.stat().st_size for path in (out / "tiny").glob("*.onnx"))
    assert 0 < row["difference"] < 1e-5
    assert row["parity"] == json.loads((out / "tiny" / MANIFEST).read_text())["parity"]
    assert (row["precision"], row["status"], row["error"], row["notes"]) == ("fp32", "ok", None, [])
    table = capsys.readouterr().out
    assert str(out / "tiny") in table
    assert "bits per character" not in table


def test_the_table_shows_the_loss_of_int8_and_leaves_names_unchanged(capsys):
    parity = SimpleNamespace(worst_difference=2e-6, report=dict)
    loss = Loss(2.3456, 2.3441, 100, "validation text")
    exported = Exported(Path("out/[red]x-int8"), 1_234_567, parity, unchanged=False, loss=loss)
    jobs = [Job("[red]x", "[red]x", Path("out"), precision) for precision in ("int8", "fp32")]
    rows = [Row(jobs[0], 1.0, exported), Row(jobs[1], 0.1, error="no")]
    print_rows(rows)
    cells = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert cells == [
        ["[red]x", "int8", "out/[red]x-int8", "1.23", "MB", "2.0e-06", "2.3456", "(+0.0015)", "1.0", "ok"],
        ["[red]x", "fp32", "-", "-", "-", "-", "0.1", "failed"],
    ]
    assert (rows[0].to_json()["bits_per_char"], rows[0].to_json()["bits_per_char_fp32"]) == (2.3456, 2.3441)


def test_a_foreign_checkpoint(tmp_path, capsys, unverified):
    run = make_run(seed=4)
    weights = {name.replace("linear.bias", "strange"): value for name, value in run.weights.items()}
    torch.save(weights, tmp_path / "theirs.pt")
    (tmp_path / "symbols.json").write_text(json.dumps(LETTERS))
    command = ["--from-state-dict", str(tmp_path / "theirs.pt"), "--vocabulary", str(tmp_path / "symbols.json")]
    command += ["--out", str(tmp_path / "out"), "--rename", "strange=linear.bias"]
    assert main(command) == 0
    assert main([*command, "--name", "ours", "--check"]) == 1
    assert "ours is missing" in capsys.readouterr().err
    (bundle,) = (tmp_path / "out").iterdir()
    assert bundle.name == "theirs"
    assert read_bundle(bundle).graphs == build_bundle(run, "x").graphs
    assert main(["--from-state-dict", str(tmp_path / "none.pt"), *command[2:]]) == 1
    assert "none.pt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out out", "give at least one RUN to export"),
        ("a --out file", "--out file: file is not a folder"),
        ("a --out file/below/it", "--out file/below/it: file is not a folder"),
        ("a --out out --json nowhere/report.json", "there is no folder nowhere"),
        ("a --out out --json .", "--json: cannot write .: it is a folder"),
        ("a --out out --check --force", "--check writes nothing"),
        ("a --out out --name b", "--name is about a checkpoint; use it with --from-state-dict"),
        ("a --out out --reset after", "--reset is about a checkpoint"),
        ("--out out --from-state-dict x.safetensors", "--from-state-dict needs --vocabulary"),
        ("a --out out --text t.txt", "--text is about a checkpoint"),
        ("a --out out --from-state-dict x.pt --vocabulary v.json", "not both"),
        ("--out out --from-state-dict x.pt --vocabulary v.json --rename a", "--rename takes OLD=NEW, not 'a'"),
        ("--out out --from-state-dict x.pt --vocabulary v.json --name ../b", "'../b' cannot be the name of a bundle"),
    ],
)
def test_wrong_usage_is_reported_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    try:
        status = main(arguments.split())
    except SystemExit as error:
        status = error.code
    assert status == 2
    *usage, errors = capsys.readouterr().err.splitlines()
    assert "error: " in errors
    assert message in errors
    assert not usage or usage[0].startswith("usage: rill export")
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", ["a", "a --out o --jobs 0", "a --out o --jobs x", "a --out o --precision fp16"])
def test_what_the_parser_refuses(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2


def test_one_call_refuses_namesakes_and_survives_any_run(tmp_path, run_folder, tiny_run, unverified, capsys):
    other = save_run(make_run(seed=9), tmp_path / "elsewhere" / "tiny")
    odd = save_run(tiny_run, tmp_path / "odd")
    (odd / "summary.json").write_text("5")
    last = save_run(tiny_run, tmp_path / "last")
    assert main([*map(str, [odd, run_folder, other, last]), "--out", str(tmp_path / "out"), "--force"]) == 1
    errors = capsys.readouterr().err
    assert "summary.json is not a JSON object" in errors
    assert "has the same name" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["last", "tiny"]
