"""`rill page`: what it writes, what it refuses, and what stays when it ends early."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from npm_packages import fake_package
from random_models import make_run, save_bundle
from servers import ROOT

from rill.cli.main import main
from rill.page import runtime
from rill.page.site import MARKER


@pytest.fixture
def out(tmp_path):
    return tmp_path / "site"


@pytest.fixture
def page(tiny_folder, package, out, capfd):
    """Run the command; returns its exit status, output and errors."""

    def run(*arguments, bundle=tiny_folder, to=out, web=package):
        named = ["--onnxruntime-web", web] if web else []
        status = main(["page", *map(str, [bundle, "--out", to, *named, *arguments])])
        return status, *capfd.readouterr()

    return run


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder(page, out, tiny, tiny_folder):
    status, printed, errors = page()
    assert (status, errors) == (0, "")
    assert re.fullmatch(rf"{out}: tiny with onnxruntime-web 1.30.0, [\d.]+ MB", printed.splitlines()[0])
    assert f"python -m http.server --bind 127.0.0.1 --directory {out}, then http://127.0.0.1:8000\n" in printed
    found = content(out)
    assert found["model/model.onnx"] == (tiny_folder / "model.onnx").read_bytes()
    description = json.loads(found["model/model.json"])
    assert description["vocabulary"] == list(tiny.vocabulary.symbols)
    assert description["start_id"] == tiny.vocabulary.start_id
    assert description["unknown_id"] is None
    assert description["states"] == [{"name": "state_h", "next": "next_state_h", "shape": [1, "batch", 32]}]
    assert (description["model_id"], description["precision"]) == (tiny.model_id, "fp32")
    assert set(json.loads(found[MARKER])["files"]) == set(found)


def test_the_page_asks_no_other_host_and_has_no_inline_code(page, out):
    page()
    found = {
        name: text.decode() for name, text in content(out).items() if Path(name).suffix in (".html", ".css", ".js")
    }
    del found["onnxruntime/ort.js"]
    html = found["index.html"]
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'" in html
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", html)
    for name, text in found.items():
        assert not re.search(r"https?:|[\"'`(]//", text), name
        links = re.findall(r'(?:href|src)="([^"]+)"|(?:from|import|fetch\(|Worker\(|URL\() ?"([^"]+)"', text)
        for link in filter(None, (first or second for first, second in links)):
            assert (out / name).parent.joinpath(link).is_file(), f"{name} has {link}"


def test_it_loads_neither_numpy_nor_a_runtime():
    program = "import sys, rill.page.command; print({'numpy', 'onnxruntime', 'grpc', 'starlette'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "tag"}, "is a tagging model, which generates no text"),
        ({"bidirectional": True}, "is bidirectional: it reads texts from both ends, so it cannot generate one"),
    ],
)
def test_models_that_generate_nothing(page, out, tiny, monkeypatch, change, sentence):
    bundle = replace(tiny, model={**tiny.model, **change})
    monkeypatch.setattr("rill.page.command.read_bundle", lambda folder: bundle)
    status, _, errors = page()
    assert status == 2
    assert sentence in errors
    assert not out.exists()


def _damage(folder, how):
    """Make a bundle a careless one."""
    if how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "no model":
        (folder / "model.onnx").unlink()
    elif how == "other bytes":
        (folder / "model.onnx").write_bytes(b"something else")
    elif how == "other names":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["vocabulary"][0] = "ß"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    elif how == "link":
        shutil.copy(folder / "model.onnx", folder.parent / "other.onnx")
        (folder / "model.onnx").unlink()
        (folder / "model.onnx").symlink_to(folder.parent / "other.onnx")
    elif how == "deep":
        (folder / "manifest.json").write_text("[" * 100_000)
    elif how == "foreign":
        (folder / "manifest.json").write_text('{"name": "app", "start_url": "/"}')


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no manifest", "is not a bundle: it has no manifest.json"),
        ("no model", "model.onnx cannot be read"),
        ("other bytes", "model.onnx is damaged: its checksum differs"),
        ("other names", "model_id does not match"),
        ("link", "is a link to a file outside the bundle"),
        ("deep", "manifest.json is not JSON"),
        ("foreign", "has no format_version, so it is not a manifest of Rill"),
    ],
)
def test_bundles_that_are_damaged(page, out, tiny_folder, tmp_path, how, sentence):
    bundle = shutil.copytree(tiny_folder, tmp_path / "bundle")
    _damage(bundle, how)
    status, printed, errors = page(bundle=bundle)
    assert (status, printed) == (2, "")
    assert sentence in errors
    assert errors.count("\n") == 1
    assert not out.exists()


def test_bundles_that_are_none(page, tmp_path, tiny_folder):
    assert "is not a bundle: no such folder" in page(bundle=tmp_path / "nothing")[2]
    assert "is not a bundle: no such folder" in page(bundle=tiny_folder / "model.onnx")[2]


def test_places_that_cannot_be(page, tiny_folder, tmp_path, package):
    """Nothing is written, and the sentence names the place."""
    file = tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    places = {
        file: "is not a folder",
        file / "site": f"{file} is not a folder",
        tmp_path / "dangling": "is a link to nothing; remove it",
        tmp_path / "circle": "remove it",
        tiny_folder: f"is inside the bundle {tiny_folder}",
        tiny_folder / "site": f"is inside the bundle {tiny_folder}",
        package / "dist": f"is inside the package {package}",
    }
    before = content(tiny_folder)
    for place, sentence in places.items():
        status, _, errors = page(to=place)
        assert status == 2, place
        assert sentence in errors
        assert errors.count("\n") == 1
    assert content(tiny_folder) == before
    assert file.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_name_that_is_empty(capsys):
    with pytest.raises(SystemExit) as end:
        main(["page", "", "--out", "site"])
    assert end.value.code == 2
    assert "the name of the folder is empty" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(page, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everywhere
    status, _, errors = page()
    assert status == 2
    assert f"{tmp_path} cannot be written" in errors


def test_folders_of_others_are_left_alone(page, out, tmp_path):
    out.mkdir()
    (out / "CNAME").write_text("text.example\n")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    status, _, errors = page()
    assert status == 2
    assert "rill page did not write" in errors
    assert len(content(out)) == 2
    # With --force they stay beside the page's, and a second page needs it again.
    assert page("--force")[0] == 0
    assert (out / "CNAME").read_text() == "text.example\n"
    assert (out / ".git" / "HEAD").read_text() == "ref"
    assert page()[0] == 2
    assert page("--force")[0] == 0


def test_a_page_is_written_again(page, out, tmp_path):
    page()
    first = content(out)
    marker = json.loads((out / MARKER).read_text())
    (out / "old.js").write_text("of an earlier version")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (out / MARKER).write_text(
        json.dumps(marker | {"files": [*marker["files"], "old.js", "../outside", str(outside), 7]})
    )
    inside = out / "model" / "model.json"
    inside.write_text("damaged")
    assert page()[0] == 0
    assert content(out) == first
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"files": 7}', "[" * 100_000, '{"files": ["index.html"]}'])
def test_markers_that_are_none(page, out, marker):
    out.mkdir()
    (out / MARKER).write_text(marker)
    (out / "index.html").write_text("mine")
    assert page()[0] == 2
    assert (out / "index.html").read_text() == "mine"


def test_what_a_killed_command_left_is_removed(page, out):
    for name, age in ((".rill-page-old", 4000), (".rill-page-new", 0)):
        (out / name / "model").mkdir(parents=True)
        (out / name / "model" / "model.onnx").write_text("half")
        os.utime(out / name, (time.time() - age,) * 2)
    assert page()[0] == 0
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".rill-page-new"]


def test_links_and_folders_in_the_way(page, out, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "shared").symlink_to(elsewhere)
    assert "is not a folder, but the page needs one of that name" in page("--force")[2]
    (out / "shared").unlink()
    (out / "index.html").mkdir()
    assert "is a folder, but the page needs a file of that name" in page("--force")[2]
    assert not any(elsewhere.iterdir())
    assert [path.name for path in out.iterdir()] == ["index.html"]


def test_a_link_to_a_folder_stays(page, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert page(to=tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "index.html").is_file()


def test_parents_are_made_and_an_empty_folder_is_used(page, out, tmp_path):
    assert page(to=tmp_path / "a" / "b" / "site")[0] == 0
    out.mkdir()
    assert page()[0] == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("had_one", [False, True])
def test_nothing_half_written_stays(page, out, tmp_path, monkeypatch, error, had_one):
    if had_one:
        page()
    before = content(tmp_path)
    write, left = Path.write_bytes, [3]

    def fail(path, data):
        if not left[0]:
            raise error
        left[0] -= 1
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        status, printed, errors = page(to=out if had_one else out / "below")
    assert status == (1 if isinstance(error, OSError) else 130)
    if isinstance(error, OSError):
        assert re.fullmatch("error: cannot write .*site.*: No space left on device\n", errors)
    assert printed == ""
    assert content(tmp_path) == before
    assert out.exists() == had_one


class TestRuntime:
    """Where onnxruntime-web comes from."""

    @pytest.mark.parametrize("place", [".", "package", "node_modules/onnxruntime-web", "onnxruntime-web"])
    def test_folders_that_hold_it(self, page, tmp_path, place):
        fake_package(tmp_path / "web" / place)
        assert page(web=tmp_path / "web")[0] == 0

    def test_folders_that_do_not(self, page, tmp_path, out):
        other = fake_package(tmp_path / "other", name="onnxruntime-node")
        assert "is not the npm package onnxruntime-web" in page(web=other)[2]
        old = fake_package(tmp_path / "old", "1.14.0", without=["dist/ort.wasm.bundle.min.mjs"])
        assert "(onnxruntime-web 1.14.0) has no dist/ort.wasm.bundle.min.mjs" in page(web=old)[2]
        assert "is not a folder" in page(web=tmp_path / "nothing")[2]
        archive = tmp_path / "onnxruntime-web-1.30.0.tgz"
        archive.write_bytes(b"")
        assert "is not a folder; unpack it and name the folder" in page(web=archive)[2]
        broken = fake_package(tmp_path / "broken")
        (broken / "package.json").write_text("{")
        assert "is not the npm package onnxruntime-web" in page(web=broken)[2]
        (fake_package(tmp_path / "broken") / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"<html>")
        assert "is not WebAssembly" in page(web=broken)[2]
        (broken / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"")
        assert "has 0 bytes, so it is damaged" in page(web=broken)[2]
        assert not out.exists()

    def test_no_npm(self, page, out, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        status, _, errors = page(web=None)
        assert status == 2
        assert "there is no npm here to fetch it" in errors
        assert "--onnxruntime-web FOLDER" in errors
        assert not out.exists()

    def test_npm_is_not_asked_in_vain(self, page, out, monkeypatch):
        """A wrong place is refused before megabytes are fetched."""
        monkeypatch.setattr(runtime, "fetch_runtime", lambda: pytest.fail("fetched"))
        out.write_text("a file")
        assert page(web=None)[0] == 2

    def _npm(self, folder, monkeypatch, script):
        """Let a shell script be npm."""
        folder.mkdir()
        npm = folder / "npm"
        npm.write_text(f"#!/bin/sh\n{script}\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def test_npm_fetches_it(self, page, out, tmp_path, monkeypatch):
        package = fake_package(tmp_path / "package", "1.30.2")
        archive = tmp_path / "fetched.tgz"
        with tarfile.open(archive, "w:gz") as file:
            for name in ("../evil", "/evil", "package/../../evil"):
                file.addfile(tarfile.TarInfo(name), io.BytesIO())
            file.add(package, "package")
        self._npm(tmp_path / "bin", monkeypatch, f'echo "$@" > {tmp_path}/asked; cp {archive} "$5/onnxruntime-web.tgz"')
        status, printed, errors = page(web=None)
        assert (status, errors) == (0, "fetching onnxruntime-web@~1.30.0 by npm …\n")
        assert "onnxruntime-web 1.30.2" in printed
        assert (tmp_path / "asked").read_text().split()[-1] == "onnxruntime-web@~1.30.0"
        assert not list(tmp_path.rglob("evil"))

    @pytest.mark.parametrize(
        ("script", "sentence"),
        [
            ('echo "npm error code ENOTFOUND" >&2; exit 1', "cannot fetch onnxruntime-web@~1.30.0 (code ENOTFOUND)"),
            ("exit 0", "cannot fetch onnxruntime-web@~1.30.0 (it gives no reason)"),
            ('echo nothing > "$5/x.tgz"', "the file is damaged"),
        ],
    )
    def test_npm_fails(self, page, out, tmp_path, monkeypatch, script, sentence):
        self._npm(tmp_path / "bin", monkeypatch, script)
        status, _, errors = page(web=None)
        assert status == 2
        assert sentence in errors
        assert "--onnxruntime-web FOLDER" in errors
        assert not out.exists()

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_interrupted_while_npm_fetches(self, tiny_folder, out, tmp_path, monkeypatch, number, status):
        self._npm(tmp_path / "bin", monkeypatch, "exec sleep 60")
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        command = [sys.executable, "-m", "rill", "page", str(tiny_folder), "--out", str(out)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stderr.readline().startswith("fetching")
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(20) == status
        assert "Traceback" not in rest
        assert not out.exists()
        assert not any(temporary.iterdir())


def test_symbols_that_json_and_html_could_trip_over(page, out, tmp_path):
    symbols = ("\n", '"', "<", "&", "\u2028", "😀", "\x7f", "a")
    folder = tmp_path / "odd"
    save_bundle(make_run(symbols, hidden=4), folder)
    assert page(bundle=folder)[0] == 0
    assert json.loads((out / "model" / "model.json").read_bytes())["vocabulary"] == list(symbols)
