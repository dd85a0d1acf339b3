"""Deferred writing of metrics and log lines, many together.

Written one by one between two engine rounds, whose weights fill the processor's caches, the same few lines of Python
take four times as long.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

DELAY_SECONDS = 0.1  # until an event appears in the metrics and the log
WRITTEN_AT_ONCE = 64  # entries


class Ledger:
    """Entries to be written in the order in which they were noted; used on the event loop only."""

    def __init__(self) -> None:
        self._entries: list[tuple[Callable[[Any], None], Any]] = []
        self._due: deque[tuple[Callable[[Any], None], Any]] = deque()  # to be written before the entries

    def note(self, write: Callable[[Any], None], value: Any) -> None:
        """Call `write` with `value`, soon."""
        if not self._entries:
            asyncio.get_running_loop().call_later(DELAY_SECONDS, self._begin)
        self._entries.append((write, value))

    def settle(self) -> None:
        """Write everything now."""
        self._gather()
        while self._due:
            self._write_some()

    def _begin(self) -> None:
        self._gather()
        self._continue()

    def _continue(self) -> None:
        """Write some entries, and the rest in the next iterations: all at once could take 10 ms."""
        if len(self._due) > WRITTEN_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._continue)
        self._write_some()

    def _gather(self) -> None:
        self._due += self._entries
        self._entries.clear()

    def _write_some(self) -> None:
        for _ in range(min(WRITTEN_AT_ONCE, len(self._due))):
            write, value = self._due.popleft()
            write(value)
