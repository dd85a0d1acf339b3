"""Files that the server reads again when they change: certificates, keys and bearer tokens."""

import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rill.serve.errors import StartError

LARGEST = 2**20  # bytes of a file: far above any chain of certificates or list of tokens

log = logging.getLogger("rill")

Content = TypeVar("Content")


class ReloadedFiles(Generic[Content]):
    """The `content` that `read` returns for some files: read at once, and again when one of them has changed.

    `read` may raise StartError, and so does the constructor; later the error is logged, once for each change, and the
    old content stays in use.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Content]) -> None:
        self._paths, self._read = paths, read
        self._seen = self._versions()
        self.content = read()

    def renew(self) -> bool:
        """Read the files again if they have changed; returns whether there is new content."""
        now = self._versions()
        if now == self._seen:
            return False
        self._seen = now
        try:
            self.content = self._read()
        except StartError as error:
            log.error("%s; the previous content stays in use", error)
            return False
        log.info("%s: read again", ", ".join(self._paths))
        return True

    def _versions(self) -> list[tuple[int, ...]]:
        """Return for each file what changes with its content; a missing file has a version, too."""
        versions: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError as error:
                versions.append((error.errno or 0,))
            else:
                versions.append((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return versions


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
