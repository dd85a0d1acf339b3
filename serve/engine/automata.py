"""The automata in use, side by side in the tables that the constrained graphs read.

An automaton with n states takes n + 1 rows from its base on, in the order of its states. Row 0 is free: padding is
there, and may choose any symbol. The tables are the first rows of larger arrays, of which the system gives memory as
they are written: more rows are a longer view, without a copy, and a round in progress keeps the shorter one.
"""

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.errors import RequestError
from rill.vocabulary import Vocabulary

MOST_BYTES = 256 * 2**20  # of the tables of a model; beyond it calls wait
KEPT_BYTES = 16 * 2**20  # of automata that no stream uses: they may be asked for again
FIRST_ROWS = 256
ENTRIES_AT_ONCE = 2**16  # written before other work of the event loop has its turn: about half a millisecond

GOES_ON, COMPLETE, ENDED = range(3)  # of a row: a text goes on, a symbol has completed it, a terminator has ended it

_FREE = 0  # the row that padding is in


@dataclass(frozen=True)
class Tables:
    """The inputs of the constrained graphs (`rill.export.graphs.serving`), and `ends`, int8 [rows]: GOES_ON, COMPLETE
    or ENDED.
    """

    allowed: NDArray[np.float32]  # [rows, symbols]
    transitions: NDArray[np.int64]  # [rows, symbols]
    continues: NDArray[np.float32]  # [rows, 1]
    reads: NDArray[np.bool_]  # [rows, 1]
    ends: NDArray[np.int8]  # [rows]

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def zeros(cls, rows: int, symbols: int) -> "Tables":
        """Tables of zeros."""
        return cls(
            np.zeros((rows, symbols), np.float32),
            np.zeros((rows, symbols), np.int64),
            np.zeros((rows, 1), np.float32),
            np.zeros((rows, 1), np.bool_),
            np.zeros(rows, np.int8),
        )

    def first(self, rows: int) -> "Tables":
        """A view of the first `rows`."""
        return Tables(*(values[:rows] for values in vars(self).values()))

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The inputs of the graphs by name; no copies."""
        named = {name: vars(self)[name] for name in ("allowed", "transitions", "continues", "reads")}
        return named | {"transitions": self.transitions.reshape(-1)}


@dataclass(eq=False)
class _Region:
    """The rows of an automaton. `writing` is the task that writes them, if that takes several turns."""

    automaton: Automaton
    base: int
    users: int = 0
    writing: asyncio.Task[None] | None = None

    @property
    def rows(self) -> int:
        return self.automaton.states + 1


class Automata:
    """The automata of a model's streams, in `tables`; `changes` counts what was written to them.

    Used on the event loop, but `tables`, `changes` and `base`, which the engine's thread reads.
    """

    def __init__(self, vocabulary: Vocabulary, most_bytes: int = MOST_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
        self._symbols, self._never_ids = len(vocabulary), list(vocabulary.never_ids)
        row_bytes = sum(values.nbytes for values in vars(Tables.zeros(1, self._symbols)).values())
        self._most_rows, self._kept_rows = most_bytes // row_bytes, kept_bytes // row_bytes
        self._regions: dict[Automaton, _Region] = {}  # those without users first, the least recently used before others
        self._used_rows = self._unused_rows = 0
        self._line: deque[tuple[Automaton, asyncio.Future[None]]] = deque()
        self.changes = 0
        self._begin()

    @property
    def waiting(self) -> int:
        """Callers that wait for room."""
        return len(self._line)

    def base(self, automaton: Automaton) -> int:
        """The row of state 0 of an automaton that is in the tables."""
        return self._regions[automaton].base

    async def acquire(self, automaton: Automaton) -> None:
        """Wait until an automaton is in the tables, where it stays until `release`.

        Callers for whom there is no room wait in line. Raises RequestError for an automaton that is too large.
        """
        if 1 + automaton.states + 1 > self._most_rows:
            raise RequestError(
                "sampling.constraint",
                f"the constraint has {automaton.states:,} states, too many for this model: at most "
                f"{max(self._most_rows - 2, 0):,} fit in the memory for constraints",
            )
        if automaton in self._regions:
            self.hold(automaton)
        elif self._line or not self._place(automaton):
            await self._wait(automaton)
        else:
            self.hold(automaton)
        if writing := self._regions[automaton].writing:
            try:
                await asyncio.shield(writing)
            except BaseException:
                self.release(automaton)
                raise

    def hold(self, automaton: Automaton) -> None:
        """Count one more user of an automaton that is in the tables."""
        region = self._regions[automaton]
        if not region.users:
            self._used_rows += region.rows
            self._unused_rows -= region.rows
        region.users += 1

    def release(self, automaton: Automaton) -> None:
        """Count one user less: an automaton without users makes room for others when that is needed."""
        region = self._regions[automaton]
        region.users -= 1
        if region.users:
            return
        self._used_rows -= region.rows
        self._unused_rows += region.rows
        self._regions[automaton] = self._regions.pop(automaton)  # the last to leave
        while self._unused_rows > self._kept_rows and self._evict():
            pass
        self._serve_line()
        is_large = len(self.tables) > max(self._kept_rows, FIRST_ROWS)
        if is_large and not self._used_rows and not any(region.writing for region in self._regions.values()):
            self._begin()  # the memory of a crowd returns to the system

    # ---- the waiting line

    async def _wait(self, automaton: Automaton) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = automaton, turn
        self._line.append(place)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(automaton)  # it was placed at the moment of the cancellation
            elif place in self._line:
                self._line.remove(place)
                self._serve_line()  # those behind may need less
            raise

    def _serve_line(self) -> None:
        while self._line:
            automaton, turn = self._line[0]
            if not turn.done():  # else it was cancelled
                if automaton not in self._regions and not self._place(automaton):
                    return
                self.hold(automaton)
                turn.set_result(None)
            self._line.popleft()

    # ---- room

    def _begin(self) -> None:
        """Begin with empty tables."""
        self._regions.clear()
        self._unused_rows = 0
        rows = max(min(FIRST_ROWS, self._most_rows), 1)
        self._arrays = Tables.zeros(rows, self._symbols)
        self._arrays.allowed[_FREE, self._never_ids] = -np.inf
        self._arrays.continues[_FREE], self._arrays.reads[_FREE] = 1, True
        self._gaps = [(1, rows)]  # from and to, in order; no two are adjacent
        self.tables = self._arrays
        self.changes += 1

    def _place(self, automaton: Automaton) -> bool:
        """Put an automaton into the tables, without users yet; False if there is no room."""
        base = self._take(automaton.states + 1)
        if base is None:
            return False
        region = self._regions[automaton] = _Region(automaton, base)
        self._unused_rows += region.rows
        if automaton.transitions.size <= ENTRIES_AT_ONCE:
            self._write(region, 0, automaton.states)
            self._close(region)
        else:
            region.writing = asyncio.get_running_loop().create_task(self._write_in_turns(region))
        return True

    def _take(self, rows: int) -> int | None:
        """The first of so many free rows; None if there are none, even after the unused automata have left."""
        while True:
            for at, (begin, end) in enumerate(self._gaps):
                if end - begin >= rows:
                    self._gaps[at : at + 1] = [(begin + rows, end)] if end - begin > rows else []
                    return begin
            if not self._grow(rows) and not self._evict():
                return None

    def _grow(self, rows: int) -> bool:
        """Make the tables long enough for so many rows at their end; False if they cannot be."""
        length = len(self.tables)
        free = length - self._gaps[-1][0] if self._gaps and self._gaps[-1][1] == length else 0
        needed = length + rows - free
        if needed > self._most_rows:
            return False
        if needed > len(self._arrays):  # only once: from now on there are as many rows as there may be
            arrays = Tables.zeros(self._most_rows, self._symbols)
            for new, old in zip(vars(arrays).values(), vars(self._arrays).values(), strict=True):
                new[: len(old)] = old
            self._arrays = arrays
        grown = min(max(2 * length, 1 << (needed - 1).bit_length()), self._most_rows)
        self._free(length, grown)
        self.tables = self._arrays.first(grown)
        self.changes += 1
        return True

    def _evict(self) -> bool:
        """Let the least recently used automaton without users leave; False if there is none."""
        for region in self._regions.values():
            if not region.users and not region.writing:
                del self._regions[region.automaton]
                self._unused_rows -= region.rows
                self._free(region.base, region.base + region.rows)
                return True
        return False

    def _free(self, begin: int, end: int) -> None:
        insort(self._gaps, (begin, end))
        at = self._gaps.index((begin, end))
        if at + 1 < len(self._gaps) and self._gaps[at + 1][0] == end:
            end = self._gaps.pop(at + 1)[1]
        if at and self._gaps[at - 1][1] == begin:
            at -= 1
            begin = self._gaps.pop(at)[0]
        self._gaps[at] = begin, end

    # ---- rows

    async def _write_in_turns(self, region: _Region) -> None:
        states = max(ENTRIES_AT_ONCE // self._symbols, 1)
        for begin in range(0, region.automaton.states, states):
            self._write(region, begin, min(begin + states, region.automaton.states))
            await asyncio.sleep(0)
        self._close(region)
        region.writing = None
        self._serve_line()  # it may have lost its users meanwhile

    def _write(self, region: _Region, begin: int, end: int) -> None:
        """Write the rows of the states `begin` to `end`."""
        transitions, t = region.automaton.transitions[begin:end], self._arrays
        rows = slice(region.base + begin, region.base + end)
        is_forbidden = transitions == FORBIDDEN
        is_complete = is_forbidden.all(axis=1)
        is_forbidden[is_complete] = False  # a row without any symbol would give NaN
        t.allowed[rows] = np.where(is_forbidden, np.float32(-np.inf), np.float32(0))
        t.transitions[rows] = np.maximum(transitions, 0)
        t.transitions[rows] += region.base
        t.transitions[rows][is_complete] = np.arange(rows.start, rows.stop)[is_complete, None]
        t.continues[rows] = ~is_complete[:, None]
        t.reads[rows] = True
        t.ends[rows] = np.where(is_complete, COMPLETE, GOES_ON)

    def _close(self, region: _Region) -> None:
        """Write the row of a text that a terminator has ended."""
        row, t = region.base + region.automaton.ended, self._arrays
        t.allowed[row], t.transitions[row] = 0, row
        t.continues[row], t.reads[row], t.ends[row] = 0, False, ENDED
        self.changes += 1


class DeviceTables:
    """The tables on a device, brought up to date when they have changed; on the CPU they are the same memory.

    Used by the engine's thread only.
    """

    def __init__(self, automata: Automata, device: str, device_id: int) -> None:
        self._automata, self._device, self._device_id = automata, device, device_id
        self._tables: Tables | None = None  # of the last call
        self._changes = 0
        self._values: Mapping[str, ort.OrtValue] = {}

    def values(self) -> Mapping[str, ort.OrtValue]:
        """The tables' inputs of the constrained graphs."""
        changes, tables = self._automata.changes, self._automata.tables  # in this order: what comes later is seen later
        if tables is not self._tables or (self._device != "cpu" and changes != self._changes):
            self._values = {name: self._copy(values) for name, values in tables.inputs().items()}
            self._tables, self._changes = tables, changes
        return self._values

    def _copy(self, values: NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(values, self._device, self._device_id)
