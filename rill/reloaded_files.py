"""Files that are read again when they change: certificates, keys and bearer tokens."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

log = logging.getLogger("rill")

Content = TypeVar("Content")


class ReloadedFiles(Generic[Content]):
    """The `content` that `read` returns for some files: read at once, and again when one of them has changed.

    `read` may raise a `refusal`, and so does the constructor; later the error is logged, once for each change, and the
    old content stays in use.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Content], refusal: type[Exception]) -> None:
        self._paths, self._read, self._refusal = paths, read, refusal
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
        except self._refusal as error:
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
