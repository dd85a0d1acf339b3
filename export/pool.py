"""Run jobs in several processes. A process that dies fails only its own job."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

from rill.export.display import Display
from rill.processes import safe_imports

STOP_SECONDS = 5.0  # for a process to remove what it was writing

# Not fork: the parent has loaded PyTorch and ONNX Runtime, whose threads and locks do not survive one.
_CONTEXT = multiprocessing.get_context("spawn")

Job = TypeVar("Job")
Result = TypeVar("Result")
RunJob = Callable[[Job, Callable[[str], object]], Result]  # is given a callback that reports progress


def run_all(
    jobs: Sequence[Job],
    run_job: RunJob[Job, Result],
    on_death: Callable[[Job, float, str], Result],
    processes: int,
    display: Display[Result],
) -> list[Result]:
    """Run all jobs in at most `processes` processes; returns their results in the order of the jobs.

    A single process is the caller's own. `on_death` makes the result of a job whose process died, from the job, its
    seconds and the reason. KeyboardInterrupt ends all processes and is raised again.
    """
    processes = min(processes, len(jobs))
    if processes > 1:
        return _run_in_processes(jobs, run_job, on_death, processes, display)
    results = []
    for job in jobs:
        display.begin(0, job)
        results.append(run_job(job, lambda step: display.report(0, step)))
        display.end(0, results[-1])
    return results


class _Worker:
    """A process that runs one job after another, and this process's end of the pipe to it."""

    def __init__(self, run_job: RunJob[Any, Any]) -> None:
        self.index, self.started = -1, 0.0  # which job it runs, and since when
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
        with safe_imports():
            resource_tracker.ensure_running()  # otherwise it starts with the process, and unblocks SIGINT
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits this
        try:
            with safe_imports():
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # so that the process has the only copy, and its end is seen here
        self._send(run_job)

    def begin(self, index: int, job: object) -> None:
        """Send it a job."""
        self.index, self.started = index, time.monotonic()
        self._send(job)

    def _send(self, value: object) -> None:
        with suppress(OSError):  # it has died: `receive` says so
            self.connection.send(value)

    def receive(self) -> tuple[str, Any] | None:
        """A step that begins, or an empty string and the job's result; None if the process has died."""
        try:
            message: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.connection.close()
            return None
        return message

    def stop(self) -> None:
        """End it within STOP_SECONDS."""
        self.process.join(STOP_SECONDS)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _run_in_processes(
    jobs: Sequence[Job],
    run_job: RunJob[Job, Result],
    on_death: Callable[[Job, float, str], Result],
    processes: int,
    display: Display[Result],
) -> list[Result]:
    waiting, idle = deque(range(len(jobs))), deque(range(processes))  # jobs; lanes
    workers: dict[int, _Worker] = {}  # by lane; one that died is replaced
    results: dict[int, Result] = {}
    try:
        while len(results) < len(jobs):
            while waiting and idle:
                lane, index = idle.popleft(), waiting.popleft()
                display.begin(lane, jobs[index])
                if lane not in workers:
                    workers[lane] = _Worker(run_job)
                workers[lane].begin(index, jobs[index])
            busy = {worker.connection: lane for lane, worker in workers.items() if lane not in idle}
            for connection in wait(list(busy)):
                lane = busy[connection]  # type: ignore[index]  # `wait` returns what it was given
                worker = workers[lane]
                message = worker.receive()
                if message and message[0]:
                    display.report(lane, message[0])
                    continue
                if message:
                    result: Result = message[1]
                else:
                    seconds, reason = time.monotonic() - worker.started, _reason(workers.pop(lane).process.exitcode)
                    result = on_death(jobs[worker.index], seconds, reason)
                results[worker.index] = result
                display.end(lane, result)
                idle.append(lane)
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.stop()
    return [results[index] for index in range(len(jobs))]


def _reason(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed (SIGKILL); if memory ran out, use fewer --jobs"
    if status is not None and status < 0:
        return f"its process died of signal {-status} ({signal.strsignal(-status)})"
    return f"its process ended with status {status}"


def _work(connection: Connection) -> None:
    """Run jobs from `connection` until there are no more or the parent has ended."""
    # Before the first message: receiving it loads PyTorch and NumPy, which gain nothing from threads here.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        run_job: RunJob[Any, Any] = connection.recv()
        while True:
            result = run_job(connection.recv(), lambda step: connection.send((step, None)))
            connection.send(("", result))


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that half-written files are removed


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)  # the main thread may be waiting in a system call
