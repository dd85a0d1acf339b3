"""The process pool alone, with jobs that load no model library: processes that die, signals, results in order."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from servers import ROOT, wait_until

# Each job reads a file; on a pipe without a writer it hangs in a system call. The display prints its calls.
PROGRAM = """
import os, sys
from pathlib import Path
from rill.export.pool import run_all


def run_job(path, on_progress):
    on_progress("reading")
    return f"{path.read_text()} {os.environ['OMP_NUM_THREADS']}"


class Display:
    def begin(self, lane, job):
        print("begin", lane, job.name, flush=True)

    def report(self, lane, step):
        print(step, lane, flush=True)

    def end(self, lane, result):
        print("end", lane, result, flush=True)


if __name__ == "__main__":
    jobs = [Path(argument) for argument in sys.argv[2:]]
    try:
        results = run_all(jobs, run_job, lambda job, seconds, reason: reason, int(sys.argv[1]), Display())
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print("results", results)
"""


@pytest.fixture
def start(tmp_path):
    """Start the program on jobs of these names; those that begin with `hang` do."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(processes, *names):
        paths = [tmp_path / name for name in names]
        for path in paths:
            os.mkfifo(path) if path.name.startswith("hang") else path.write_text(path.name.upper())
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), str(processes), *map(str, paths)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a process group of its own, which is what Ctrl-C in a terminal signals
        )

    return run


def lines_until(process, *expected):
    """Read the program's lines until all expected ones have appeared."""
    lines = []
    while not set(expected) <= set(lines):
        lines.append(process.stdout.readline().rstrip())
        assert lines[-1], lines
    return lines


def workers(process):
    """The pids of the pool's processes, the oldest first."""
    return sorted(each.pid for each in psutil.Process(process.pid).children() if "spawn_main" in str(each.cmdline()))


def test_results_are_in_the_order_of_the_jobs(start):
    with start(2, "a", "b", "c", "d", "e") as process:
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert printed.splitlines()[-1] == "results ['A 1', 'B 1', 'C 1', 'D 1', 'E 1']"
    assert printed.count("begin 0") + printed.count("begin 1") == printed.count("reading") == printed.count("end") == 5


def test_a_process_that_dies_fails_its_own_job_and_is_replaced(start):
    with start(2, "hang", "hang too", "c", "d") as process:
        lines_until(process, "reading 0", "reading 1")
        first, second = workers(process)
        os.kill(first, signal.SIGKILL)
        lines_until(process, "begin 0 c")
        os.kill(second, signal.SIGTERM)
        printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    killed = "its process was killed (SIGKILL); if memory ran out, use fewer --jobs"
    assert printed.splitlines()[-1] == f"results {[killed, 'its process ended with status 143', 'C 1', 'D 1']}"


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_all_processes(start, number):
    with start(2, "hang", "hang too", "c") as process:
        lines_until(process, "reading 0", "reading 1")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        sent = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # all of them, as a terminal does
        else:
            os.kill(process.pid, number)
        printed, errors = process.communicate(timeout=60)
        wait_until(lambda: not any(child.is_running() for child in children))
        assert time.monotonic() - sent < 15
    assert process.returncode == (1 if number == signal.SIGINT else -number)
    assert (printed, errors) == ("", "interrupted\n" if number == signal.SIGINT else "")
