"""Files that the server reads: certificates, keys and bearer tokens."""

import logging
import os
import stat
from pathlib import Path

from rill.serve.errors import StartError

LARGEST = 2**20  # bytes of a file: far above any chain of certificates or list of tokens

log = logging.getLogger("rill")


def read_file(flag: str, path: str) -> bytes:
    """Return the content of the file given with `flag`. Raises StartError."""
    try:
        if not Path(path).is_file():
            raise StartError(f"{flag} {path} {'is not a file' if Path(path).exists() else 'does not exist'}")
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise StartError(f"{flag} {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise StartError(f"{flag} {path} is larger than {LARGEST} bytes: probably the wrong file")
    return content


def warn_if_others_may_read(flag: str, path: str) -> None:
    """Log a warning if every user of the machine can read a secret."""
    if os.name == "posix" and os.stat(path).st_mode & stat.S_IROTH:
        log.warning("%s %s can be read by every user of this machine: chmod o-r %s", flag, path, path)
