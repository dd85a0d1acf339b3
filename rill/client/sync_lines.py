"""`Client.score_lines`: the loops around a `LineQueue`, in threads.

One thread reads the lines, which may take for ever to come; each call that runs has one; the caller's own takes the
scores. All of them share one lock.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import grpc

from rill.client.errors import closed_error
from rill.client.lines import LineBatch, LineQueue, LineScore
from rill.client.origin import REQUEST_ID
from rill.client.streams import end_call
from rill.v1 import rill_pb2 as pb


class LineCalls:
    """The calls for `lines`, at `methods`: Score of each address. `is_closed` tells whether the client is closed."""

    def __init__(
        self, lines: Iterable[str], queue: LineQueue, methods: Sequence[Any], is_closed: Callable[[], bool]
    ) -> None:
        self._lines, self._queue, self._methods, self._is_closed = lines, queue, methods, is_closed
        lock = threading.Lock()
        self._has_scores, self._has_room, self._has_work, self._may_repeat = (
            threading.Condition(lock) for _ in range(4)
        )
        self._stopped = threading.Event()
        self._workers = self._idle = 0
        self._calls: set[Any] = set()

    def scores(
        self, models: Callable[[], pb.ListModelsResponse], include_end: bool | None
    ) -> Generator[LineScore, None, None]:
        """Yield the scores in order. Raises ServerError, and what the iterable of lines raises."""
        if self._is_closed():
            raise closed_error()
        self._queue.begin(models(), include_end)
        threading.Thread(target=self._read, name="rill-lines", daemon=True).start()
        try:
            while (score := self._next()) is not None:
                yield score
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the calls, from any thread. The thread that reads ends when the next line comes."""
        self._stopped.set()
        with self._has_scores:
            for condition in (self._has_scores, self._has_room, self._has_work, self._may_repeat):
                condition.notify_all()
            calls = list(self._calls)
        for call in calls:
            end_call(call)

    def _next(self) -> LineScore | None:
        with self._has_scores:
            while not self._stopped.is_set():
                score = self._queue.next_score()
                if score:
                    if self._queue.has_room:
                        self._has_room.notify()
                    return score
                if self._queue.is_complete:
                    return None
                self._has_scores.wait()
            return None

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            for text in self._lines:
                with self._has_room:
                    while not self._queue.has_room and not self._stopped.is_set():
                        self._has_room.wait()
                    if self._stopped.is_set():
                        return
                    self._queue.add(text)
                    self._wake_worker()
        except BaseException as raised:  # the caller's thread raises it
            failure = raised
        with self._has_scores:
            self._queue.close(failure)
            self._has_scores.notify()

    def _wake_worker(self) -> None:
        """Let a thread make a call for what waits. With the lock."""
        if self._idle:
            self._has_work.notify()
        elif self._workers < self._queue.most_calls:
            self._workers += 1
            threading.Thread(target=self._work, name="rill-line-calls", daemon=True).start()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            try:
                self._score(batch)
            except BaseException as failure:  # the caller's thread raises it
                with self._has_scores:
                    self._queue.fail(batch.first, failure)
            with self._has_scores:
                self._queue.pause()
                self._has_scores.notify()
                self._may_repeat.notify()

    def _take(self) -> LineBatch | None:
        with self._has_work:
            self._idle += 1
            try:
                while not self._stopped.is_set():
                    if (batch := self._queue.take()) is not None:
                        return batch
                    self._has_scores.notify()  # of empty lines
                    self._has_work.wait()
                return None
            finally:
                self._idle -= 1

    def _score(self, batch: LineBatch) -> None:
        """Make the calls that a batch takes. Raises ServerError."""
        metadata = ((REQUEST_ID, batch.request_id),)
        while not self._stopped.is_set():
            with self._has_scores:
                request = batch.request()
            if request is None:
                return
            if self._is_closed():
                raise closed_error()
            call = self._methods[batch.address](request, timeout=batch.time_left(), metadata=metadata)
            error = None
            try:
                with self._has_scores:
                    self._calls.add(call)
                    if self._stopped.is_set():
                        end_call(call)
                for message in call:
                    with self._has_scores:
                        batch.received(message)
                        self._has_scores.notify()
            except grpc.RpcError as raised:
                error = raised
            finally:
                with self._has_scores:
                    self._calls.discard(call)
                end_call(call)
            if not self._stopped.is_set():
                self._rest(batch, error)

    def _rest(self, batch: LineBatch, error: grpc.RpcError | None) -> None:
        """Wait for the next attempt, and where a server had no room until one less call runs. Raises ServerError."""
        with self._has_scores:
            delay = batch.ended(error)
            self._has_scores.notify()
            if batch.was_refused:
                self._queue.pause()
        self._stopped.wait(delay)
        if batch.was_refused:
            with self._may_repeat:
                while not (self._queue.may_call or self._stopped.is_set()):
                    self._may_repeat.wait()
                self._queue.unpause()
