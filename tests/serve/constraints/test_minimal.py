"""Minimisation of tables."""

import numpy as np

from rill.serve.constraints.minimal import NONE, minimize

GENERATOR = np.random.Generator(np.random.Philox(3))


def test_a_long_chain_and_a_wide_automaton() -> None:
    chain = np.full((8192, 65), NONE, np.int32)
    chain[:-1] = np.arange(1, 8192, dtype=np.int32)[:, None]
    accepting = np.zeros(8192, np.bool_)
    accepting[-1] = True
    table, accepts = minimize(chain, accepting, 0)
    assert np.array_equal(table, chain)
    assert np.array_equal(accepts, accepting)

    wide = GENERATOR.integers(0, 8192, (8192, 65)).astype(np.int32)
    table, accepts = minimize(wide, wide[:, 0] % 2 == 0, 5)
    assert len(table) == 8192


def test_equal_states_are_joined_and_dead_ones_left_out() -> None:
    # 0 -a-> 1, 0 -b-> 2; 1 and 2 -a-> 3, a match; 4 is unreachable; 5 leads nowhere
    table = np.array([[1, 2], [3, 5], [3, 5], [NONE, NONE], [3, 0], [5, 5]], np.int32)
    accepting = np.array([False, False, False, True, False, False])
    small, accepts = minimize(table, accepting, 0)
    assert small.tolist() == [[1, 1], [2, NONE], [NONE, NONE]]
    assert accepts.tolist() == [False, False, True]
    assert len(minimize(table, accepting, 5)[0]) == 0
