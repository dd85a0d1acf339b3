"""Logs to stderr, as text or JSON, by a thread of their own: what nobody reads is lost, counted, and holds up nothing.

A record may have `fields`, which are written as key=value, or in JSON as keys of the line.
"""

import atexit
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rill.serve.observe.metrics import DROPPED_LINES

WAITING_LINES = 10_000  # at most: a few megabytes
TOGETHER_SECONDS = 0.05  # that a line waits for others
STOP_SECONDS = 1.0  # that the server's end waits for the last lines
PIPE_BYTES = 4096  # PIPE_BUF of Linux

Lines = queue.SimpleQueue[bytes]  # an empty one: the end

_BARE = re.compile(r'[^\s"=\\]+')  # what key=value shows without quotes


class TextFormatter(logging.Formatter):
    """Time, level and message, then the fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, without a traceback."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={_value(value)}" for key, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """An object a line: time (UTC), level, message, the fields, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


FORMATS = {"text": TextFormatter, "json": JsonFormatter}


class QueueHandler(logging.Handler):
    """Makes lines of records, and leaves it to the writer's thread to write them; every record has the `fields` too.

    `dropped` counts those that had no place in the queue.
    """

    def __init__(self, formatter: logging.Formatter, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.queue: Lines = queue.SimpleQueue()
        self.dropped = 0
        self._fields = fields or {}

    def emit(self, record: logging.LogRecord) -> None:
        """Put its line in the queue, if there is place. (Whoever calls this has the handler's lock.)"""
        if self.queue.qsize() < WAITING_LINES:
            self.queue.put(self.line(record))
        else:
            self.dropped += 1
            DROPPED_LINES.inc()

    def line(self, record: logging.LogRecord) -> bytes:
        """The line of a record."""
        try:
            if self._fields:
                record.fields = {**self._fields, **getattr(record, "fields", {})}
            return f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception as error:  # the others can be written
            return f"a log line from {record.pathname}:{record.lineno} cannot be written: {error}\n".encode()


class Writer(threading.Thread):
    """Writes the lines of a handler to a file descriptor, and how many are missing there.

    They go together: each time that it wakes up, it takes the GIL from those who stream. And not through Python's own
    buffer, whose lock a thread that waits for the reader would keep at exit.
    """

    def __init__(self, descriptor: int, source: QueueHandler) -> None:
        super().__init__(name="rill-log", daemon=True)
        self._descriptor, self._source = descriptor, source
        self._told = 0  # of those that are missing
        self._ends = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while line := self._source.queue.get():
            self._ends.wait(TOGETHER_SECONDS)
            lines = [line]
            while line and not self._source.queue.empty():
                if line := self._source.queue.get():
                    lines.append(line)
            self._write(lines)
            if not line:
                return

    def stop(self) -> None:
        """Write what is left, as far as somebody reads it; nothing after it."""
        self._ends.set()
        self._source.queue.put(b"")
        self.join(STOP_SECONDS)

    def _write(self, lines: list[bytes]) -> None:
        if missing := self._source.dropped - self._told:
            self._told += missing
            said = {"name": "rill", "levelname": "WARNING", "msg": f"{missing} log lines were lost: nobody read them"}
            lines.append(self._source.line(logging.makeLogRecord(said)))
        try:
            for chunk in _chunks(lines):
                left = memoryview(chunk)
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except OSError:  # nobody will read it
            DROPPED_LINES.inc(len(lines))


def start_logging(form: str, calls: bool, descriptor: int, fields: Mapping[str, Any] | None = None) -> Writer:
    """Write all logs from INFO on to `descriptor`, as one of FORMATS; without `calls`, no line for each call.

    All lines have the `fields`.

    Other libraries' logs, from WARNING on, take the same way: nothing that logs waits for whoever reads.
    """
    # What no format shows would be looked up for each record (Python's Logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = QueueHandler(FORMATS[form](), fields)
    writer = Writer(descriptor, handler)
    writer.start()
    atexit.register(writer.stop)
    logging.getLogger().addHandler(handler)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_shorten)
    logging.getLogger("rill").setLevel(logging.INFO)
    logging.getLogger("rill.calls").setLevel(logging.INFO if calls else logging.WARNING)
    return writer


def _shorten(record: logging.LogRecord) -> bool:
    """A client may leave while the last of its call is sent. gRPC logs that with a traceback if it hears of it late."""
    if record.getMessage().startswith("ExecuteBatchError"):
        record.exc_info = None
    return True


def stderr() -> int:
    """Its file descriptor; where it is closed, its number may be another file's."""
    return sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)


def _value(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str):
        return text
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _chunks(lines: list[bytes]) -> Iterator[bytes]:
    """The lines together, but no more than a pipe takes at once: other processes may write to it too."""
    chunk = b""
    for line in lines:
        if chunk and len(chunk) + len(line) > PIPE_BYTES:
            yield chunk
            chunk = b""
        chunk += line
    yield chunk
