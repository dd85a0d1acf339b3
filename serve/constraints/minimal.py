"""The smallest automaton of a language, numbered in one way."""

from collections import deque
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

NONE = -1
_FEW = 64  # states for which NumPy is not worth its calls

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
    edges = np.sort(targets[targets != NONE].astype(np.int64) * states + sources[targets != NONE])
    edges = edges[np.append(True, edges[1:] != edges[:-1])[: len(edges)]]
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
    rows = table.tolist()
    labels = [*accepting.astype(int).tolist(), -1]  # the last one: no way on
    blocks: list[set[int]] = [set(np.flatnonzero(~accepting).tolist()), set(np.flatnonzero(accepting).tolist())]
    changed = set(range(len(table)))
    while changed:
        by_block: dict[int, list[int]] = {}
        for state in changed:
            by_block.setdefault(labels[state], []).append(state)
        others = {
            label: other for label, part in by_block.items() if (other := _other(blocks[label], part)) is not None
        }
        following = _following([*changed, *others.values()], table, rows, labels)
        moved: list[int] = []
        for label, looked_at in by_block.items():
            other = others.get(label)
            for part in _split(blocks, label, looked_at, following, None if other is None else following[other]):
                for state in part:  # `following` has the labels of before
                    labels[state] = len(blocks)
                blocks.append(part)
                moved += part
        changed = {state for each in moved for state in before[each]}
    return labels


def _other(block: set[int], looked_at: list[int]) -> int | None:
    """A state of a block that is not looked at; all of these are alike."""
    if len(looked_at) == len(block):
        return None
    seen = set(looked_at)
    return next(state for state in block if state not in seen)


def _following(states: list[int], table: Table, rows: list[list[int]], labels: list[int]) -> dict[int, Hashable]:
    """What is equal for states whose successors have the same labels."""
    if len(states) < _FEW:
        return {state: tuple(map(labels.__getitem__, rows[state])) for state in states}
    found = np.ascontiguousarray(np.array(labels, np.int32)[table[states]])
    if not found.size:
        return dict.fromkeys(states, 0)
    whole_rows = found.view(np.dtype((np.void, found.dtype.itemsize * found.shape[1]))).ravel()
    return dict(zip(states, np.unique(whole_rows, return_inverse=True)[1].tolist(), strict=True))


def _split(
    blocks: list[set[int]], label: int, looked_at: list[int], following: dict[int, Hashable], others: Hashable | None
) -> list[set[int]]:
    """Split a block, of which the states that are not looked at have the successors `others`, if there are any. The
    largest part stays; the others are returned.
    """
    block = blocks[label]
    parts: dict[Hashable, set[int]] = {}
    for state in looked_at:
        parts.setdefault(following[state], set()).add(state)
    if others is not None:
        parts.pop(others, None)
    apart = sorted(parts.values(), key=len)
    if others is None:
        blocks[label] = apart.pop()
        return apart
    block.difference_update(*apart)
    if apart and len(apart[-1]) > len(block):
        blocks[label] = apart.pop()
        apart.append(block)
    return apart


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
