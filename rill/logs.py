"""Logs to stderr, as text or JSON, written by a thread of their own: unread lines are dropped and counted, never waited
for.

A record may have `fields`, which are written as key=value, or in JSON as keys of the line.
"""

import atexit
import json
import logging
import os
import queue
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rill.log_lines import LOG_FORMATS, json_line

WAITING_LINES = 10_000  # at most: a few megabytes
TOGETHER_SECONDS = 0.05  # for which a line waits for more
STOP_SECONDS = 1.0  # for which the process's end waits for the last lines
PIPE_BYTES = 4096  # PIPE_BUF of Linux

Lines = queue.SimpleQueue[bytes]  # an empty line ends it

_BARE = re.compile(r'[^\s"=\\]+')  # values that need no quotes in key=value


class TextFormatter(logging.Formatter):
    """Time, level and message, then the fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, without a traceback."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={_value(value)}" for key, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """One object per line: time (UTC), level, message, the fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return json_line(record.created, record.levelname.lower(), record.getMessage(), **fields)


FORMATS = dict(zip(LOG_FORMATS, (TextFormatter, JsonFormatter), strict=True))


class QueueHandler(logging.Handler):
    """Turns records into lines and queues them for the writer's thread; adds `fields` to every record.

    `dropped` counts the lines that found the queue full; `on_dropped` is called with each number of lost lines.
    """

    def __init__(
        self,
        formatter: logging.Formatter,
        fields: Mapping[str, Any] | None = None,
        on_dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.queue: Lines = queue.SimpleQueue()
        self.dropped, self.on_dropped = 0, on_dropped
        self._fields = fields or {}

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line unless the queue is full. The caller holds the handler's lock."""
        if self.queue.qsize() < WAITING_LINES:
            self.queue.put(self.line(record))
        else:
            self.dropped += 1
            self.on_dropped(1)

    def line(self, record: logging.LogRecord) -> bytes:
        """Return the line of a record."""
        try:
            if self._fields:
                record.fields = {**self._fields, **getattr(record, "fields", {})}
            return f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception as error:  # other lines can still be written
            return f"a log line from {record.pathname}:{record.lineno} cannot be written: {error}\n".encode()


class Writer(threading.Thread):
    """Writes the lines of a handler to a file descriptor, and reports how many were dropped.

    It writes several lines together, since each wake-up takes the GIL from streams. It bypasses Python's own buffer:
    a thread that waits for the reader would hold the buffer's lock at exit.
    """

    def __init__(self, descriptor: int, source: QueueHandler) -> None:
        super().__init__(name="rill-log", daemon=True)
        self._descriptor, self._source = descriptor, source
        self._reported = 0  # of the dropped lines
        self._ending = threading.Event()

    def run(self) -> None:
        """Write lines until `stop`."""
        while line := self._source.queue.get():
            self._ending.wait(TOGETHER_SECONDS)
            lines = [line]
            while line and not self._source.queue.empty():
                if line := self._source.queue.get():
                    lines.append(line)
            self._write(lines)
            if not line:
                return

    def stop(self, last: bytes = b"") -> None:
        """Write the remaining lines and a `last` one, as far as they are read, and end."""
        self._ending.set()
        if last:
            self._source.queue.put(last)
        self._source.queue.put(b"")
        self.join(STOP_SECONDS)

    def error_line(self, error: str) -> bytes:
        """Return the line of an error that ends the process; as text, it is the sentence that commands print."""
        if isinstance(self._source.formatter, TextFormatter):
            return f"error: {error}\n".encode(errors="backslashreplace")
        return self._source.line(logging.makeLogRecord({"name": "rill", "levelname": "ERROR", "msg": error}))

    def _write(self, lines: list[bytes]) -> None:
        if missing := self._source.dropped - self._reported:
            self._reported += missing
            record = {
                "name": "rill",
                "levelname": "WARNING",
                "msg": f"{missing} log lines were dropped: stderr was not read",
            }
            lines.append(self._source.line(logging.makeLogRecord(record)))
        try:
            for chunk in _chunks(lines):
                self._write_chunk(chunk)
        except OSError:  # the reader has closed it
            self._source.on_dropped(len(lines))

    def _write_chunk(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # another program has made the terminal or the pipe non-blocking
                select.select([], [self._descriptor], [])


_writers: list[Writer] = []  # of this process


def start_logging(
    form: str,
    calls: bool,
    descriptor: int,
    fields: Mapping[str, Any] | None = None,
    on_dropped: Callable[[int], None] = lambda _: None,
) -> Writer:
    """Write all logs from INFO on to `descriptor`, in a format of LOG_FORMATS; with `calls`, a line for each call.

    All lines have the `fields`. `on_dropped` is called, in any thread, with each number of lines that are lost. Other
    libraries' logs, from WARNING on, Python's warnings and exceptions that nothing catches are written the same way: no
    code that logs waits for the reader.
    """
    # Do not collect what no format shows (Python's Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = QueueHandler(FORMATS[form](), fields, on_dropped)
    writer = Writer(descriptor, handler)
    writer.start()
    _writers.append(writer)
    atexit.register(writer.stop)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    sys.excepthook = _log_exception
    threading.excepthook = lambda thrown: _log_exception(thrown.exc_type, thrown.exc_value, thrown.exc_traceback)
    sys.unraisablehook = lambda thrown: _log_exception(thrown.exc_type, thrown.exc_value, thrown.exc_traceback)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_shorten)
    logging.getLogger("rill").setLevel(logging.INFO)
    logging.getLogger("rill.calls").setLevel(logging.INFO if calls else logging.WARNING)
    return writer


def finish_logging(error: str = "") -> None:
    """Write the remaining lines, and last an `error` that ends the process, as far as they are read."""
    for writer in _writers:
        writer.stop(writer.error_line(error) if error else b"")


def _log_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Log an exception that nothing catches, as Python's hooks report it."""
    if issubclass(kind, SystemExit):  # a thread may end in this way
        return
    logging.getLogger("rill").critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace) if error else None)


def _shorten(record: logging.LogRecord) -> bool:
    """Drop gRPC's traceback for a client that left while its last message was being sent."""
    if record.getMessage().startswith("ExecuteBatchError"):
        record.exc_info = None
    return True


def stderr() -> int:
    """Return the descriptor of stderr; if it is closed, its number may belong to another file."""
    return sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)


def _value(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str):
        return text
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _chunks(lines: list[bytes]) -> Iterator[bytes]:
    """Join lines up to the size that a pipe takes at once: other processes may write to it as well."""
    chunk = b""
    for line in lines:
        if chunk and len(chunk) + len(line) > PIPE_BYTES:
            yield chunk
            chunk = b""
        chunk += line
    yield chunk
