"""Jobs in processes of their own: one that dies takes its job with it and nothing else."""

import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType

import torch

from rill.export.display import Display
from rill.export.jobs import Job, Row, do

STOP_SECONDS = 5.0  # for a process to remove what it was writing

# Not fork: the parent has loaded PyTorch and ONNX Runtime, whose threads and locks do not survive one.
_CONTEXT = multiprocessing.get_context("spawn")


def run_jobs(jobs: Sequence[Job], processes: int, display: Display) -> list[Row]:
    """Do all jobs, in at most so many processes, and give their rows in the order of the jobs.

    Where one would do, it is this process. KeyboardInterrupt ends all of them, then passes on.
    """
    processes = min(processes, len(jobs))
    if processes > 1:
        return _in_processes(jobs, processes, display)
    rows = []
    for job in jobs:
        display.begin(0, job)
        rows.append(do(job, lambda doing: display.tell(0, doing)))
        display.end(0, rows[-1])
    return rows


class _Worker:
    """A process that does one job after another, and this process's end of the pipe to it."""

    def __init__(self) -> None:
        self.index, self.began = -1, 0.0  # which job it does, and since when
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # it would be started with the process, and unblock SIGINT
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the process inherits
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # so that the process has the only one, and its end is seen here

    def begin(self, index: int, job: Job) -> None:
        """Send it a job."""
        self.index, self.began = index, time.monotonic()
        with suppress(OSError):  # it has died: `receive` says so
            self.connection.send(job)

    def receive(self) -> str | Row | None:
        """What it does now, what became of its job, or None if it has died."""
        try:
            message: str | Row = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.connection.close()
            return None
        return message

    def stop(self) -> None:
        """End it, at the latest after STOP_SECONDS."""
        self.process.join(STOP_SECONDS)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _in_processes(jobs: Sequence[Job], processes: int, display: Display) -> list[Row]:
    waiting = deque(range(len(jobs)))
    rows: dict[int, Row] = {}
    workers: dict[int, _Worker] = {}  # by lane
    idle = deque(range(processes))  # lanes
    try:
        while len(rows) < len(jobs):
            while waiting and idle:
                lane, index = idle.popleft(), waiting.popleft()
                display.begin(lane, jobs[index])
                if lane not in workers:
                    workers[lane] = _Worker()
                workers[lane].begin(index, jobs[index])
            busy = [lane for lane in workers if lane not in idle]
            ready = wait([workers[lane].connection for lane in busy])
            for lane in [lane for lane in busy if workers[lane].connection in ready]:
                message = workers[lane].receive()
                if isinstance(message, str):
                    display.tell(lane, message)
                    continue
                index, seconds = workers[lane].index, time.monotonic() - workers[lane].began
                if message is None:
                    message = Row(jobs[index], seconds, error=_death(workers.pop(lane).process.exitcode))
                rows[index] = message
                display.end(lane, message)
                idle.append(lane)
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.stop()
    return [rows[index] for index in range(len(jobs))]


def _death(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed (SIGKILL); if memory ran out, use fewer --jobs"
    if status is not None and status < 0:
        return f"its process died of signal {-status} ({signal.strsignal(-status)})"
    return f"its process ended with status {status}"


def _work(connection: Connection) -> None:
    """What a process does: jobs from `connection`, until there are no more or the parent has gone."""
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            connection.send(do(connection.recv(), connection.send))


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception: what is half-written is removed on its way


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)  # as it may be waiting in a system call
