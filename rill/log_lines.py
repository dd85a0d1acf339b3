"""Errors of `rill serve` before it has a log: as JSON where its options ask for JSON, as far as they can be read."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOG_FORMATS = ("text", "json")

_FLAG, _VARIABLE, _KEY = "--log-format", "RILL_SERVE_LOG_FORMAT", r"""^\s*log-format\s*=\s*["']json["']"""


def report_error(message: str, arguments: Sequence[str], prefix: str = "error: ") -> None:
    """Print an error to stderr, in the format that these arguments of `rill serve` ask for."""
    is_json = _asks_for_json(arguments)
    print(json_line(time.time(), "error", message) if is_json else f"{prefix}{message}", file=sys.stderr)


def json_line(seconds: float, level: str, message: str, **more: Any) -> str:
    """Return a line of the log, without its end; `seconds` since 1970."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    milliseconds = int(seconds % 1 * 1000)
    line = {"time": f"{moment}.{milliseconds:03}Z", "level": level, "message": message, **more}
    is_utf = (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")
    return json.dumps(line, ensure_ascii=not is_utf)  # an escape of Python's would not be JSON


def _asks_for_json(arguments: Sequence[str]) -> bool:
    if formats := list(_values(_FLAG, arguments)):
        return formats[-1] == "json"
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE] == "json"
    files = [*_values("--config", arguments), os.environ.get("RILL_SERVE_CONFIG", "")]
    try:
        return re.search(_KEY, Path(files[0]).read_text(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False


def _values(flag: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yield the values of a flag: `--flag value` or `--flag=value`."""
    for given, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, is_joined, value = given.partition("=")
        if name == flag:
            yield value if is_joined else following
