"""The files that a corpus is read from. Needs no PyTorch."""

import re
import stat
from pathlib import Path

DESCRIPTORS = re.compile(r"/dev/(stdin|fd/.*)|/proc/[^/]+/(task/[^/]+/)?fd/.*")  # /dev/fd/63 is what <(…) stands for


def is_stream(spec: str) -> bool:
    """Whether `spec` names something that can be read only once: standard input, a pipe, an open file of a process."""
    if spec == "-" or DESCRIPTORS.fullmatch(spec):
        return True
    try:
        mode = Path(spec).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def name_of(spec: str) -> str:
    """What to call `spec` in a message."""
    return "standard input" if spec in ("-", "/dev/stdin", "/dev/fd/0") else spec
