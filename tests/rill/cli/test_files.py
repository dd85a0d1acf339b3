"""Files that commands write: tokens, texts, reports."""

import json
import os
import subprocess
import sys

import pytest
from servers import ROOT

from rill import files
from rill.cli.main import main

GENERATE = ("generate", "a", "--max-chars", "5")


def rill(*arguments, given=None):
    """The command, in a process of its own: what it wrote to standard output, or a failed test."""
    command = [sys.executable, "-m", "rill", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, input=given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tokens_are_written_to_what_is_there(server, tmp_path, devices, capfd):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "secret").touch(0o640)
    (tmp_path / "secret").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("secret", "link", "pipe", devices / "null"):
        assert main([*GENERATE, "--target", server.target, "--save-token", str(tmp_path / name)]) == 0
    assert len(os.read(reader, 4096)) > 100
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert (devices / "null").is_char_device()
    assert (tmp_path / "link").is_symlink()
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("secret", "real")] == [0o640, 0o600]
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "real", "secret"]
    assert main([*GENERATE, "--target", server.target, "--resume-token", str(tmp_path / "link")]) == 0
    assert len(capfd.readouterr().out) == 25


def test_a_pipe_that_nothing_reads_is_one_sentence(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(files, "READER_SECONDS", 0.0)
    os.mkfifo(tmp_path / "pipe")
    assert main([*GENERATE, "--target", server.target, "--save-token", str(tmp_path / "pipe")]) == 1
    assert capfd.readouterr().err == f"error: cannot write {tmp_path}/pipe: no program reads this pipe\n"


def test_a_token_does_not_go_where_the_text_goes(capsys):
    for name in ("-", "/dev/stdout"):
        with pytest.raises(SystemExit):
            main([*GENERATE, "--save-token", name])
        assert f"{name}: standard output has the text" in capsys.readouterr().err


def test_chat_saves_to_what_is_there(server, tmp_path, devices):
    (tmp_path / "link").symlink_to("real")
    rill("chat", "--target", server.target, given=f"a\n/save {devices}/null\n/save {tmp_path}/link\n")
    assert (devices / "null").is_char_device()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_size > 100


def test_batch_writes_to_standard_output(server, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    batch = ("batch", tmp_path / "in.jsonl", "--target", server.target, "--max-chars", 5, "--out")
    written = rill(*batch, "-")
    assert [json.loads(line)["line"] for line in written.splitlines()] == [1, 2, 3]
    rill(*batch, tmp_path / "out")
    assert (tmp_path / "out").read_text() == written
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_what_cannot_be_written_is_named(server, tmp_path, devices, capfd):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    batch = ["batch", str(tmp_path / "in.jsonl"), "--target", server.target, "--max-chars", "5", "--out"]
    assert main([*batch, f"{devices}/full"]) == 1
    assert capfd.readouterr().err == f"error: cannot write {devices}/full: No space left on device\n"
