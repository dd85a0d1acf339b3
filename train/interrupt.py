"""Ctrl-C and SIGTERM as a request that the training loop looks at between steps."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """A context manager. The first signal sets `requested` to its number; a second one acts as it would without us."""

    def __init__(self) -> None:
        self.requested: int = 0

    def __enter__(self) -> Self:
        self._previous = {kind: signal.signal(kind, self._request) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)
