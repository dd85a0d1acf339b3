"""`--bundle FOLDER`: a private server exists for one command, and never longer."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
from servers import ROOT, wait_until

from rill.cli import local_server as module
from rill.cli.local_server import StartError, local_server
from rill.cli.main import main
from rill.client.sync import Client

TEXT = ["--max-chars", "40", "--seed", "7"]
ENDLESS = ["generate", "a", "--max-chars", "0", "--seed", "7"]


def servers_of(process):
    """Find the private servers that a process has started."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "rill.cli.local_server" in child.cmdline()]


@contextmanager
def running(*arguments, **options):
    """Run `rill ARGUMENTS`; yields its process and its private server, as soon as there is one."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rill", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As on a terminal: where the tests run in the background, a shell has SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # it takes no lock
        **options,
    ) as process:
        try:
            wait_until(lambda: servers_of(process))
            yield process, servers_of(process)[0]
        finally:
            process.kill()


def test_generate_is_the_same_as_from_a_server(server, tiny_folder, capsys):
    assert main(["generate", "To be", *TEXT, "--target", server.target]) == 0
    expected = capsys.readouterr()
    assert main(["generate", "To be", *TEXT, "--bundle", str(tiny_folder), "--device", "cpu"]) == 0
    assert capsys.readouterr() == expected
    assert len(expected.out) == 40


def test_score_and_models(server, tiny_folder, tmp_path, capsys):
    (tmp_path / "text").write_text("To be")
    for command in (["score", str(tmp_path / "text")], ["models"]):
        assert main([*command, "--target", server.target]) == 0
        expected = capsys.readouterr()
        assert main([*command, "--bundle", str(tiny_folder)]) == 0
        assert capsys.readouterr() == expected


@pytest.mark.long
def test_verify_takes_the_flag_as_well(tiny_folder, capfd):
    assert main(["verify", "--bundle", str(tiny_folder), "--chars", "40", "--streams", "2", "--json"]) == 0
    (model,) = json.loads(capfd.readouterr().out)["models"]
    assert len(model["targets"]) == 2


def test_chat(server, tiny_folder):
    def chat(*source):
        command = [sys.executable, "-W", "error", "-m", "rill", "chat", *TEXT, *map(str, source)]
        done = subprocess.run(
            command, cwd=ROOT, input="To be\n\n", capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert chat("--bundle", tiny_folder) == chat("--target", server.target)


def test_the_next_command_can_continue_from_a_token(tiny_folder, tmp_path, state_folder, capsys):
    token = tmp_path / "here.token"
    rill = ["generate", *TEXT, "--bundle", str(tiny_folder)]
    assert main([*rill, "To be", "--save-token", str(token)]) == 0
    assert main([*rill, "--resume-token", str(token)]) == 0
    both = capsys.readouterr().out
    assert main([*rill, "To be", "--max-chars", "80"]) == 0
    assert capsys.readouterr().out == both
    key = state_folder / "rill" / "resume.key"
    assert (len(key.read_bytes()), key.stat().st_mode & 0o777) == (32, 0o600)
    assert [path.name for path in key.parent.iterdir()] == ["resume.key"]


def test_a_key_that_cannot_be_stored_is_not_needed(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with local_server(str(tiny_folder)) as target, Client(target) as client:
        assert len("".join(client.generate("a", max_chars=5))) == 5


@pytest.mark.parametrize("damage", ["short", "folder", "lost link"])
def test_a_damaged_key_is_not_used(damage, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = tmp_path / "rill" / "resume.key"
    key.parent.mkdir(parents=True)
    if damage == "short":
        key.write_bytes(b"x")
    elif damage == "folder":
        key.mkdir()
    else:
        key.symlink_to("nowhere")
    with local_server(str(tiny_folder)) as target, Client(target) as client:
        assert len("".join(client.generate("a", max_chars=5))) == 5


def test_a_relative_state_folder_is_ignored(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.chdir(tmp_path)
    with local_server(str(tiny_folder)):
        assert list(tmp_path.iterdir()) == []


def test_settings_of_other_servers_do_not_count(tiny_folder, tmp_path, monkeypatch, capsys):
    """Neither the environment of `rill serve` nor a bearer token applies to private servers."""
    monkeypatch.setenv("RILL_SERVE_AUTH_TOKEN_FILE", str(tmp_path / "nothing"))
    monkeypatch.setenv("RILL_TOKEN", "of another server")
    assert main(["generate", *TEXT, "--bundle", str(tiny_folder)]) == 0
    assert len(capsys.readouterr().out) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "{tmp}/nothing"], "error: {tmp}/nothing is not a bundle: no such folder"),
        (["--bundle", "{tmp}"], "error: {tmp} is not a bundle: it has no manifest.json"),
        (["--bundle", "{tiny}", "--device", "tpu"], "error: --device 'tpu' "),
        (["--bundle", "{tiny}", "--target", "127.0.0.1:1"], "error: give either a bundle or --target, not both"),
        (["--bundle", "{tiny}", "--model", "tiny"], "error: --model goes with --target"),
        (["--bundle", "{tiny}", "--tls-ca", "ca.pem"], "error: --tls-ca goes with --target"),
        (["--target", "localhost:99999"], "error: target 'localhost:99999' has a port above 65535"),
        (["--device", "cpu"], "error: --device goes with a bundle"),
    ],
)
def test_what_cannot_start_is_one_line(arguments, message, tiny_folder, tmp_path, capsys):
    places = {"tmp": tmp_path, "tiny": tiny_folder}
    assert main(["generate", *(argument.format(**places) for argument in arguments)]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(message.format(**places))
    assert errors.count("\n") == 1


def test_a_missing_extra_is_named(tiny_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('none', name='onnxruntime')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    assert main(["generate", "--bundle", str(tiny_folder)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: rill serve needs the package 'onnxruntime'")
    assert "pip install 'rill-text[serve]'" in errors


def test_a_server_that_prints_nothing_is_given_up(tiny_folder, monkeypatch):
    monkeypatch.setattr(module, "START_SECONDS", 0.0)
    with pytest.raises(StartError, match="did not listen within 0 s"), local_server(str(tiny_folder)):
        pass


def test_a_server_that_is_lost_is_named(tiny_folder):
    with running(*ENDLESS, "--bundle", tiny_folder) as (process, server):
        process.stdout.read(1000)
        server.kill()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    first, second = errors.decode().splitlines()
    assert first == f"error: the private server of {tiny_folder} ended (exit status -9)"
    assert second.startswith("error: the stream broke after ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("moment", ["starting", "streaming"])
def test_a_signal_ends_the_server_too(tiny_folder, number, status, moment):
    with running(*ENDLESS, "--bundle", tiny_folder) as (process, server):
        if moment == "streaming":
            process.stdout.read(1000)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (status, b"")
    wait_until(lambda: not server.is_running())


def test_a_closed_pipe_ends_the_server_too(tiny_folder):
    with running(*ENDLESS, "--bundle", tiny_folder) as (process, server):
        process.stdout.read(1000)
        process.stdout.close()
        assert process.wait(20) == 0
    assert not server.is_running()


def test_ctrl_c_in_a_terminal_is_for_the_command(tiny_folder, tmp_path):
    """It reaches all processes of the terminal, and must not drain the server: the token is saved."""
    token = tmp_path / "here.token"
    with running(*ENDLESS, "--bundle", tiny_folder, "--save-token", token, start_new_session=True) as (process, server):
        process.stdout.read(1000)
        assert os.getsid(server.pid) != os.getsid(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
    assert token.stat().st_size > 0
    wait_until(lambda: not server.is_running())


def test_without_a_server_the_flags_are_named(monkeypatch, capsys):
    monkeypatch.setattr("rill.cli.flags.DEFAULT_TARGET", "127.0.0.1:1")
    assert main(["generate", "--retry-seconds", "0"]) == 1
    assert capsys.readouterr().err == (
        "error: no server at 127.0.0.1:1: start one (rill serve BUNDLE), or use --bundle FOLDER or --target "
        "(UNAVAILABLE)\n"
    )
