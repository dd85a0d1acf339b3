"""The operators' page of real servers: paths, methods, and whether the server lives and takes calls."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Thread

import psutil
import pytest
from servers import ROOT, wait_until

from rill.client.sync import Client
from rill.serve.observe import metrics  # noqa: F401  # the series
from rill.serve.observe import page as page_module
from rill.serve.observe.page import Readiness, page


def ask(port, path, method="GET"):
    """Return the status, the text and the headers of an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def port_of(process):
    """Read the address of the page in the log."""
    line = process.stderr.readline()
    assert " INFO metrics: http://127.0.0.1:" in line
    return int(line.rpartition(":")[2].partition("/")[0])


@contextmanager
def starting(*arguments):
    """A server that may be loading its models."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rill.serve", *map(str, arguments), "--port", "0", "--metrics-port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served():
    readiness = Readiness()
    with page("127.0.0.1", 0, lambda: readiness.obstacle) as port:
        yield port, readiness


def test_paths(served):
    port, readiness = served
    assert ask(port, "/health")[:2] == (200, "alive\n")
    assert ask(port, "/ready")[:2] == (503, "not ready: loading\n")
    readiness.obstacle = ""
    assert ask(port, "/ready?verbose")[:2] == (200, "ready\n")
    status, text, headers = ask(port, "/metrics?name[]=rill_models")
    assert (status, len(text.splitlines()), "\nrill_models " in text) == (200, 3, True)
    assert headers["Content-Type"].startswith("text/plain; version=")
    for path in ("/", "/metrics/", "/metrics2", "/favicon.ico", "/READY", "/health/x", "/%00"):
        assert ask(port, path)[:2] == (404, "not found: there are /metrics, /health and /ready\n"), path


@pytest.mark.parametrize("path", ["/metrics", "/health", "/ready", "/"])
def test_methods(served, path):
    port, _ = served
    status, text, headers = ask(port, path)
    head = ask(port, path, "HEAD")
    assert head[:2] == (status, "")
    assert head[2]["Content-Type"] == headers["Content-Type"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"):
        status, text, headers = ask(port, path, method)
        assert (status, text, headers["Allow"]) == (405, "use GET, HEAD\n", "GET, HEAD")


def test_silent_and_broken_clients_are_dropped_without_a_word(served, monkeypatch, capfd):
    monkeypatch.setattr(page_module._Handler, "timeout", 0.05)
    port, _ = served
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.settimeout(20)
        assert silent.recv(1) == b""
    with socket.create_connection(("127.0.0.1", port)) as hostile:
        hostile.settimeout(20)
        hostile.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
        assert b"400" in hostile.recv(1000)
    assert ask(port, "/health")[0] == 200
    assert capfd.readouterr().err == ""


def test_it_answers_while_models_load_and_until_the_drain_ends(tiny_folder, tmp_path):
    key = tmp_path / "key"
    os.mkfifo(key)  # the server waits here, before it loads a model, until someone writes
    with starting(tiny_folder, "--resume-key-file", key, "--drain-seconds", 60) as process:
        port = port_of(process)
        assert ask(port, "/ready")[:2] == (503, "not ready: loading\n")
        assert ask(port, "/health")[0] == ask(port, "/metrics")[0] == 200
        key.write_bytes(bytes(32))
        target = process.stdout.readline().split()[3]
        wait_until(lambda: ask(port, "/ready")[:2] == (200, "ready\n"))
        wait_until(lambda: 'rill_max_streams{model="tiny"} 4096.0' in ask(port, "/metrics")[1])
        with Client(target, retry_seconds=0) as client:
            stream = client.generate("a", max_chars=0, chars_per_second=100)
            next(stream)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: ask(port, "/ready")[:2] == (503, "not ready: draining\n"))
            assert ask(port, "/health")[0] == 200
            stream.close()
        assert process.wait(timeout=20) == 0
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/health")


@pytest.mark.long
def test_several_processes_are_ready_while_one_of_them_serves(tiny_folder, tmp_path):
    with starting(tiny_folder, "--engines", 2, "--max-streams", 3, "--drain-seconds", 60) as process:
        port = port_of(process)
        parent = psutil.Process(process.pid)
        wait_until(lambda: len(parent.children()) == 2)
        first, second = parent.children()
        second.suspend()
        wait_until(lambda: " INFO engine " in process.stderr.readline())  # the first one serves
        assert ask(port, "/ready")[:2] == (503, "not ready: loading\n")
        second.resume()
        target = process.stdout.readline().split()[3]
        wait_until(lambda: ask(port, "/ready")[:2] == (200, "ready\n"))
        wait_until(lambda: 'rill_max_streams{model="tiny"} 6.0' in ask(port, "/metrics")[1])
        first.kill()
        wait_until(lambda: first not in parent.children())
        assert ask(port, "/ready")[0] == 200
        Thread(target=process.stderr.read, daemon=True).start()
        with Client(target, retry_seconds=5) as client:
            stream = client.generate("a", max_chars=0, chars_per_second=100)
            next(stream)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: ask(port, "/ready")[:2] == (503, "not ready: draining\n"))
            stream.close()
        assert process.wait(timeout=20) == 0
