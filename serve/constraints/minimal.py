"""The smallest automaton of a language, numbered in one way."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

NONE = -1

Table = NDArray[np.int32]  # (states, columns): the next state, or NONE


def minimize(table: Table, accepting: NDArray[np.bool_], start: int) -> tuple[Table, NDArray[np.bool_]]:
    """Return the smallest automaton of the same language: the table and which states accept; state 0 is the first.

    The states are numbered as a breadth-first search by ascending columns finds them. Those that cannot be reached, or
    from which no match can be reached, are left out; without any match, none is left.
    """
    before = _predecessors(table)
    living = _reaching(before, accepting)
    if not living[start]:
        return table[:0], accepting[:0]
    table = np.where((table != NONE) & living[table], table, len(table)).astype(np.int32)  # one more: no way on
    labels = _equal_states(table, accepting, before)
    table, accepting = _representatives(table, accepting, labels)
    return _numbered(table, accepting, labels[start])


def _predecessors(table: Table) -> list[list[int]]:
    """The states from which each state is reached."""
    states, columns = table.shape
    targets = table.ravel()
    sources = np.repeat(np.arange(states, dtype=np.int64), columns)
    edges = np.unique(targets[targets != NONE].astype(np.int64) * states + sources[targets != NONE])
    bounds = np.searchsorted(edges, np.arange(states + 1, dtype=np.int64) * states)
    numbers = (edges % states).tolist()
    return [numbers[first:last] for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def _reaching(before: list[list[int]], accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    living = accepting.copy()
    waiting = np.flatnonzero(accepting).tolist()
    while waiting:
        for state in before[waiting.pop()]:
            if not living[state]:
                living[state] = True
                waiting.append(state)
    return living


def _equal_states(table: Table, accepting: NDArray[np.bool_], before: list[list[int]]) -> list[int]:
    """Give states the same label exactly if the same texts match from them.

    Blocks of states are split until the states of each have the same successors. Only states with a successor that got
    a new label are looked at again. The largest part of a block keeps its label, so a state gets few new ones, and a
    long chain of states, which a round splits in one place only, costs no more than a wide automaton.
    """
    states = len(table)
    rows = table.tolist()
    labels = [*accepting.astype(int).tolist(), -1]  # the last one: no way on
    blocks: list[set[int]] = [set(np.flatnonzero(~accepting).tolist()), set(np.flatnonzero(accepting).tolist())]
    changed = set(range(states))
    while changed:
        by_block: dict[int, list[int]] = {}
        for state in changed:
            by_block.setdefault(labels[state], []).append(state)
        moved: list[int] = []
        renamed: list[tuple[set[int], int]] = []
        for label, looked_at in by_block.items():
            parts = _parts(blocks[label], looked_at, rows, labels)
            parts.sort(key=len)
            for part in parts[:-1]:
                renamed.append((part, len(blocks)))
                blocks.append(part)
                moved += part
            blocks[label] = parts[-1]
        for part, label in renamed:  # only now: the labels of a round are those of its beginning
            for state in part:
                labels[state] = label
        changed = {state for each in moved for state in before[each]}
    return labels


def _parts(block: set[int], looked_at: list[int], rows: list[list[int]], labels: list[int]) -> list[set[int]]:
    """Split a block by the labels of its states' successors; those that were not looked at are alike."""
    parts: dict[tuple[int, ...], set[int]] = {}
    others: set[int] | None = None
    if len(looked_at) < len(block):
        seen = set(looked_at)
        other = next(state for state in block if state not in seen)
        others = parts[tuple(map(labels.__getitem__, rows[other]))] = set()
    for state in looked_at:
        parts.setdefault(tuple(map(labels.__getitem__, rows[state])), set()).add(state)
    if others is not None:
        if len(parts) == 1:
            return [block]
        apart = [part for part in parts.values() if part is not others]
        return [*apart, block.difference(*apart)]
    return list(parts.values())


def _representatives(table: Table, accepting: NDArray[np.bool_], labels: list[int]) -> tuple[Table, NDArray[np.bool_]]:
    """One state of each label, in the place of all."""
    of_state = np.array(labels, np.int32)
    chosen = np.full(of_state.max() + 1, -1, np.int64)
    chosen[of_state[:-1]] = np.arange(len(table))
    chosen = np.where(chosen < 0, 0, chosen)  # a label without states: nothing leads there
    return of_state[table[chosen]], accepting[chosen]


def _numbered(table: Table, accepting: NDArray[np.bool_], start: int) -> tuple[Table, NDArray[np.bool_]]:
    rows = table.tolist()
    numbers = {start: 0}
    waiting = deque([start])
    while waiting:
        for state in rows[waiting.popleft()]:
            if state != NONE and state not in numbers:
                numbers[state] = len(numbers)
                waiting.append(state)
    old = np.fromiter(numbers, np.int64, len(numbers))
    new = np.full(len(table) + 1, NONE, np.int32)  # the last one is for NONE
    new[old] = np.arange(len(old), dtype=np.int32)
    return new[table[old]], accepting[old]
