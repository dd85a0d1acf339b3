"""Writing bundles: whole, reproducible, never half-written, and never over anything else."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from constrained import forget_constraints
from random_models import make_run, save_bundle, save_run
from servers import ROOT

from rill.bundle import MANIFEST, BundleError, read_bundle
from rill.export import pipeline as exporting
from rill.export.errors import ParityError, UnsupportedError
from rill.export.graphs.build import build_bundle
from rill.export.write import is_replaceable
from rill.train.config import ModelConfig


@pytest.fixture
def run_folder(tmp_path, tiny_run):
    return save_run(tiny_run, tmp_path / "runs" / "tiny")


def test_a_different_bundle_is_replaced_only_by_force(tmp_path, run_folder, unverified):
    first = exporting.export_run(run_folder, tmp_path / "out")
    save_run(make_run(seed=9), tmp_path / "changed" / "tiny")
    with pytest.raises(BundleError, match="--force"):
        exporting.export_run(tmp_path / "changed" / "tiny", tmp_path / "out")
    assert read_bundle(first.folder).model_id
    replaced = exporting.export_run(tmp_path / "changed" / "tiny", tmp_path / "out", force=True)
    assert not replaced.unchanged
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


def test_a_bundle_of_an_earlier_version_gets_the_graphs_that_it_lacks(tmp_path, run_folder, unverified):
    first = exporting.export_run(run_folder, tmp_path / "out")
    whole = read_bundle(first.folder)
    forget_constraints(first.folder)
    assert exporting.export_run(run_folder, tmp_path / "out").unchanged is False
    assert read_bundle(first.folder) == whole
    assert exporting.export_run(run_folder, tmp_path / "out").unchanged


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path, run_folder):
    precious = tmp_path / "out" / "tiny" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        exporting.export_run(run_folder, tmp_path / "out", force=True)
    assert precious.exists()


@pytest.mark.parametrize("content", ['{"manifest_version": 3}', "{}"])
def test_a_folder_with_another_programs_manifest_is_never_replaced(tmp_path, run_folder, content):
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    (tmp_path / "out" / "tiny" / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="not a bundle"):
        exporting.export_run(run_folder, tmp_path / "out", force=True)


def test_a_bundle_with_anything_else_in_it_is_never_replaced(tmp_path, run_folder, tiny_run):
    folder = tmp_path / "out" / "tiny"
    save_bundle(make_run(seed=9), folder)
    (folder / "notes.txt").touch()
    with pytest.raises(BundleError, match="not a bundle"):
        exporting.export_run(run_folder, tmp_path / "out", force=True)
    (folder / "notes.txt").unlink()
    (folder / "decode.onnx").unlink()
    (folder / "decode.onnx").mkdir()
    assert not is_replaceable(folder)
    (folder / "decode.onnx").rmdir()
    assert is_replaceable(folder)  # damaged


def test_a_damaged_and_an_older_bundle_are_replaced_by_force(tmp_path, run_folder, tiny_run, unverified):
    folder = tmp_path / "out" / "tiny"
    save_bundle(tiny_run, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 1}))
    (folder / "decode-filters.onnx").touch()
    with pytest.raises(BundleError, match="holds a damaged or an older bundle; replace it with --force"):
        exporting.export_run(run_folder, tmp_path / "out")
    assert is_replaceable(folder)
    (folder / MANIFEST).write_text("[" * 100_000)
    assert is_replaceable(folder)
    (folder / MANIFEST).write_text("{")
    exporting.export_run(run_folder, tmp_path / "out", force=True)
    assert read_bundle(folder).name == "tiny"
    assert not (folder / "decode-filters.onnx").exists()


def test_an_empty_folder_and_a_link_are_fine(tmp_path, run_folder, unverified):
    (tmp_path / "out" / "tiny").mkdir(parents=True)
    exporting.export_run(run_folder, tmp_path / "out")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "tiny").symlink_to(tmp_path / "out" / "tiny")
    save_run(make_run(seed=9), tmp_path / "changed" / "tiny")
    for source in (tmp_path / "changed" / "tiny", run_folder):
        exporting.export_run(source, tmp_path / "linked", force=True)
    assert (tmp_path / "linked" / "tiny").is_symlink()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


def test_a_rename_that_fails_leaves_the_old_bundle(tmp_path, tiny, tiny_run, monkeypatch):
    folder = tmp_path / "tiny"
    save_bundle(tiny_run, folder)
    rename = Path.rename

    def fail(self, target):
        if self.name == ".tiny.new":
            raise OSError("disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk trouble"):
        save_bundle(make_run(seed=9), folder)
    assert read_bundle(folder).model_id == tiny.model_id
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_interrupted_write_leaves_the_old_bundle(tmp_path, tiny, tiny_run, monkeypatch):
    folder = tmp_path / "tiny"
    save_bundle(tiny_run, folder)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_bundle(make_run(seed=9), folder)
    assert read_bundle(folder).model_id == tiny.model_id
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("name", "message"), [("", "cannot be the name of a bundle"), (os.fsdecode(b"r\xff"), "not UTF-8")]
)
def test_a_name_that_no_bundle_can_have_is_refused(tmp_path, tiny_run, name, message):
    with pytest.raises(UnsupportedError, match=message):
        exporting.export_loaded(tiny_run, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_leftovers_of_a_killed_export_are_removed_even_if_nothing_changed(tmp_path, run_folder, unverified):
    exporting.export_run(run_folder, tmp_path / "out")
    for leftover in (".tiny.new", ".tiny.old"):
        (tmp_path / "out" / leftover).mkdir()
        (tmp_path / "out" / leftover / "model.onnx").touch()
    (tmp_path / "out" / ".tiny.lock").touch()
    assert exporting.export_run(run_folder, tmp_path / "out").unchanged
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny"]


def test_a_bundle_under_another_name_is_another_bundle(tmp_path, run_folder, tiny_run):
    save_bundle(tiny_run, tmp_path / "out" / "old-name")
    (tmp_path / "out" / "old-name").rename(tmp_path / "out" / "tiny")
    with pytest.raises(BundleError, match="holds a different bundle"):
        exporting.export_run(run_folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "precision", "message"),
    [("generate", "fp16", "'fp16' is not one of fp32, int8"), ("tag", "int8", "and a tagger has none")],
)
def test_a_precision_that_cannot_be_is_refused(tiny_run, task, precision, message):
    with pytest.raises(UnsupportedError, match=message):
        build_bundle(replace(tiny_run, model=ModelConfig(task=task)), "x", precision)


def test_a_failed_verification_leaves_nothing(tmp_path, run_folder, monkeypatch):
    def fail(*_):
        raise ParityError("differs")

    monkeypatch.setattr(exporting, "verify", fail)
    with pytest.raises(ParityError):
        exporting.export_run(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KILLER = """
import os, signal, sys, time
from pathlib import Path
import torch
from rill.export import pipeline as exporting
from rill.bundle import read_bundle
from rill.export.parity.verify import Parity

torch.set_num_threads(1)
run, out = sys.argv[1], Path(sys.argv[2])


def exporter(folder):
    child = os.fork()
    if child == 0:
        exporting.export_run(run, folder)
        os._exit(0)
    return child


def print_found(child, folder):
    _, status = os.waitpid(child, 0)
    print(status == signal.SIGKILL, (folder / "tiny").exists() and read_bundle(folder / "tiny").name)


for seconds in (0.1, 0.3, 0.6):  # an export takes about a second
    child = exporter(out / "by time")
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    print_found(child, out / "by time")

fsync, done = os.fsync, 0


def killing(descriptor):
    global done
    if done == last:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    fsync(descriptor)


os.fsync = killing
exporting.verify = lambda *_: Parity(0, 0, 0, 0, 0)
for last in range(10):
    print_found(exporter(out / "by file"), out / "by file")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, to load PyTorch once")
def test_killed_at_any_moment_leaves_no_half_bundle(tmp_path, run_folder, unverified):
    """SIGKILL during the export and before each file is on disk: the bundle is whole or missing."""
    command = [sys.executable, "-c", KILLER, str(run_folder), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = done.stdout.splitlines()
    assert set(found[:3]) <= {"True False", "True tiny", "False tiny"}
    assert found[3:] == ["True False"] * 8 + ["False tiny"] * 2  # seven graphs and the manifest
    for out in (tmp_path / "by time", tmp_path / "by file"):
        exporting.export_run(run_folder, out)
        assert [path.name for path in out.iterdir()] == ["tiny"]
