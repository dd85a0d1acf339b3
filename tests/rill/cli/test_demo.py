"""`rill demo`: what it prints is true, and it ends with all that it started."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx
import psutil
import pytest
from servers import ROOT, wait_until

from rill.cli import demo, main
from rill.cli.local_server import StartError

COMMAND = (sys.executable, "-W", "error", "-m", "rill", "demo", "--port", "0", "--http-port", "0")


@contextmanager
def running_demo(*arguments, stdout=subprocess.PIPE, **how):
    """A demo, where there is neither a home nor a folder that can be written, and settings that are not about it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "TMPDIR")}
    environment |= {"PYTHONPATH": str(ROOT), "RILL_SERVE_MAX_STREAMS": "nonsense", "RILL_TOKEN": "x" * 20}
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd="/", stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, **how
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def things_to_try(process):
    """Return the paragraphs that are indented."""
    lines = []
    for line in process.stdout:
        if line.startswith("Ctrl-C"):
            break
        lines.append(line)
    return [line.strip() for line in lines if line.startswith("  ")]


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def test_what_it_prints_is_true_and_ctrl_c_ends_all():
    with running_demo() as process:
        request, url, command = things_to_try(process)
        assert httpx.get(f"{url}/v1/models", timeout=20).json()["data"][0]["id"] == "shakespeare"
        assert request.startswith(f"curl -N {url}/v1/completions -H 'content-type: application/json' -d '{{")
        begin, *rest = shlex.split(command)
        rill = [begin] if begin != "rill" else [sys.executable, "-m", "rill"]
        done = subprocess.run([*rill, *rest, "--max-chars", "30"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("ROMEO:") or len(done.stdout) >= 30
        started = descendants(process)
        assert len(started) == 2
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
        assert not any(other.is_running() for other in started)


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9), (signal.SIGHUP, -1)])
def test_signals_end_all(number, status):
    with running_demo() as process:
        things_to_try(process)
        started = descendants(process)
        process.send_signal(number)
        assert process.wait(timeout=20) == status
        assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_starts(number, status):
    with running_demo() as process:
        wait_until(lambda: bool(descendants(process)))
        started = descendants(process)
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == status
        assert psutil.wait_procs(started, timeout=20)[1] == []


@pytest.mark.long
def test_a_server_that_ends_is_reported():
    with running_demo() as process:
        things_to_try(process)
        (server,) = psutil.Process(process.pid).children()
        server.kill()
        assert process.communicate(timeout=20)[1] == "error: the server ended with status -9\n"
        assert process.returncode == 1


@pytest.mark.long
def test_a_closed_stdout_does_not_matter(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f"exec {shlex.join(COMMAND[:-1])} {port} >&-"
    with subprocess.Popen(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:

        def answers():
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == ""
        assert process.returncode == 0


def test_a_port_in_use_is_one_sentence_with_the_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running_demo("--http-port", port) as process:
            assert process.communicate(timeout=20) == (
                "",
                f"error: cannot listen on 127.0.0.1:{port}: in use by another program: stop it, or choose another "
                "--http-port (0 takes a free one)\n",
            )
            assert process.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port 70000", r"^--port must be from 0 to 65535, not 70000$"),
        ("--port 7 --http-port 7", "^--port and --http-port must differ, and are both 7$"),
        ("--host unix:/x", "^--host 'unix:/x' is not an IPv6 address$"),
    ],
)
def test_options_that_make_no_sense(arguments, message, capsys):
    assert main.main(["demo", *arguments.split()]) == 2
    assert re.search(message, capsys.readouterr().err.removeprefix("error: ").rstrip())


def test_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "starlette" else object())
    with pytest.raises(StartError) as caught:
        demo.run(None)
    assert str(caught.value) == (
        "rill demo needs the package 'starlette'; install it with: pip install 'rill-text[serve,http]'"
    )


def test_addresses_are_those_of_this_machine(monkeypatch):
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    text = demo._what_to_try("127.0.0.1:7", "http://[::1]:8")
    assert "curl -N 'http://[::1]:8/v1/completions'" in text
    assert f"{sys.executable} -m rill generate" in text
