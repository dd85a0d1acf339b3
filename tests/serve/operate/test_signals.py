"""Signals at any moment: SIGHUP never ends a server, SIGTERM always does."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from servers import ROOT, run_server, wait_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def starting(*arguments, prefix=()):
    """A server that has just begun to start."""
    command = [*prefix, sys.executable, "-W", "error", "-m", "rill.serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def handled(pid, kind="SigCgt|SigIgn"):
    """The signals that a process handles, or ignores."""
    masks = re.findall(rf"^(?:{kind}):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {number for number in range(1, 32) if any(int(mask, 16) >> number - 1 & 1 for mask in masks)}


@LINUX
@pytest.mark.parametrize("engines", [1, 2])
def test_hangups_at_every_moment_end_nothing(tiny_folder, engines):
    with starting(tiny_folder, "--engines", engines, "--log-format", "json") as process:
        wait_until(lambda: signal.SIGHUP in handled(process.pid))
        ended = threading.Event()

        def hang_up():
            while not ended.wait(0.002) and process.poll() is None:
                process.send_signal(signal.SIGHUP)

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        try:
            assert process.stdout.readline().startswith("rill: listening")
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
        finally:
            ended.set()
            hanging_up.join()
        assert process.returncode == 0, log


@LINUX
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_the_first_moment_ends_it(tiny_folder, number, status):
    with starting(tiny_folder) as process:
        wait_until(lambda: number in handled(process.pid, "SigCgt") and signal.SIGHUP in handled(process.pid, "SigIgn"))
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == status


@LINUX
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_as_the_first_process_of_a_container(tiny_folder):
    """The kernel has no default action for PID 1."""
    with starting(tiny_folder, prefix=["unshare", "--pid", "--fork", "--kill-child"]) as unshare:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        wait_until(lambda: children.read_text() != "")
        first = int(children.read_text())
        wait_until(lambda: signal.SIGTERM in handled(first, "SigCgt"))
        os.kill(first, signal.SIGTERM)
        assert unshare.wait(timeout=20) == 143


def test_a_killed_parent_leaves_no_engine_that_loads(tiny_folder):
    """Whatever it is doing at that moment."""
    with starting(tiny_folder, "--engines", 2) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: len(parent.children()) == 2)
        engines = parent.children()
        process.kill()
        _, alive = psutil.wait_procs(engines, timeout=20)
        assert not alive


def test_a_hangup_while_it_serves_reads_the_bundles_again(tiny_folder):
    with run_server(tiny_folder) as running:
        running.process.send_signal(signal.SIGHUP)
        while "INFO models: tiny" not in running.process.stderr.readline():
            pass
        assert running.stop()[0] == 0
