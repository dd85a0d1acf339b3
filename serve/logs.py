"""Logs to stderr, as text or JSON, by a thread of their own: what nobody reads is lost, counted, and holds up nothing.

A record may have `fields`, which are written as key=value, or in JSON as keys of the line.
"""

import atexit
import json
import logging
import logging.handlers
import os
import queue
import re
import sys
import time
from typing import Any

from serve.metrics import DROPPED_LINES

WAITING_LINES = 10_000  # at most: a few megabytes
STOP_SECONDS = 1.0  # that the server's end waits for the last lines

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


class QueueHandler(logging.handlers.QueueHandler):
    """Leaves all work to the listener, and what has no place in the queue out."""

    queue: "queue.SimpleQueue[logging.LogRecord | None]"
    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record as it is: what it was given does not change."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put it in the queue, if there is place."""
        if self.queue.qsize() < WAITING_LINES:
            self.queue.put_nowait(record)
        else:
            self.dropped += 1  # under the handler's lock
            DROPPED_LINES.inc()


class Writer(logging.Handler):
    """Writes to a file descriptor without Python's buffer, whose lock a blocked thread would keep at exit."""

    def __init__(self, descriptor: int, source: QueueHandler) -> None:
        super().__init__()
        self._descriptor, self._source, self._told = descriptor, source, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write its line, and before it how many are missing."""
        if missing := self._source.dropped - self._told:
            self._told += missing
            self._write(logging.makeLogRecord({"levelname": "WARNING", "msg": f"{missing} log lines were lost"}))
        self._write(record)

    def _write(self, record: logging.LogRecord) -> None:
        line = memoryview(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:  # nobody will read it
            DROPPED_LINES.inc()


class QueueListener(logging.handlers.QueueListener):
    """Its end does not wait for ever."""

    _thread: Any

    def stop(self) -> None:
        """Write what is left, as far as somebody reads it."""
        self.enqueue_sentinel()
        self._thread.join(STOP_SECONDS)


def start_logging(form: str, calls: bool, descriptor: int) -> None:
    """Write all logs from INFO on to `descriptor`, as one of FORMATS; without `calls`, no line for each call.

    Other libraries' logs, from WARNING on, take the same way: nothing that logs waits for whoever reads.
    """
    handler = QueueHandler(queue.SimpleQueue())
    writer = Writer(descriptor, handler)
    writer.setFormatter(FORMATS[form]())
    listener = QueueListener(handler.queue, writer)
    listener.start()
    atexit.register(listener.stop)
    logging.getLogger().addHandler(handler)
    logging.getLogger("rill").setLevel(logging.INFO)
    logging.getLogger("rill.calls").setLevel(logging.INFO if calls else logging.WARNING)


def stderr() -> int:
    """Its file descriptor; where it is closed, its number may be another file's."""
    return sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)


def _value(value: Any) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
