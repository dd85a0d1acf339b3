"""Ctrl-C and SIGTERM as a request that the training loop checks between steps."""

import signal
import time
from types import FrameType, TracebackType
from typing import Self

SAME_SIGNAL = 1.0  # seconds


class Interrupt:
    """A context manager. The first signal sets `requested` to its number; a second one has its usual effect.

    A second signal within a second is ignored: torchrun forwards a signal that the scheduler sent to every process.
    """

    def __init__(self) -> None:
        self.requested: int = 0
        self._since = 0.0

    def __enter__(self) -> Self:
        self._previous = {kind: signal.signal(kind, self._request) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = number
            self._since = time.monotonic()
        elif time.monotonic() - self._since > SAME_SIGNAL:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)
