"""JSON on standard output."""

import json
import sys
from typing import Any


def json_of(value: Any) -> str:
    """Return a value as one line of JSON, all in ASCII where standard output is not UTF-8.

    There, a character that the encoding lacks would become an escape of Python's, which is not JSON.
    """
    is_utf = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not is_utf)
