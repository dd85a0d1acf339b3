"""The rows of an engine: how far each may go, and what it asks of the graph."""

import numpy as np
import pytest

from rill.sampling import Sampling
from rill.serve.engine.rows import BUFFER, PLAIN, TOP_K, TOP_P, Rows, kind_of
from rill.serve.engine.types import StreamSpec


def test_paces_limits_and_readers_bound_the_room():
    rows = Rows(4, 3)
    rows.enter(0, StreamSpec(np.array([0]), 1, Sampling(), 0, 100, 0.0), now=10.0)
    rows.enter(1, StreamSpec(np.array([0]), 1, Sampling(), 0, 0, 5.0), now=10.0)
    rows.enter(2, StreamSpec(np.array([0]), 1, Sampling(), 0, 0, 0.0), now=10.0)
    rows.settle()
    rows.table["buffer"] = 1000
    assert rows.room(now=10.0).tolist() == [100, 1, 1000]
    rows.table["generated"][:3] = 100, 1, 990
    assert rows.room(now=10.0).tolist() == [0, 0, 10]
    assert rows.next_due(now=10.0) == pytest.approx(0.2)
    assert rows.room(now=11.0).tolist() == [0, 5, 10]
    rows.read[2] = 500
    assert rows.room(now=10.0).tolist() == [0, 0, 510]
    rows.leave(1)
    rows.settle()
    assert rows.room(now=10.0).tolist() == [0, 510]
    assert rows.next_due(now=10.0) == np.inf


def test_rows_of_one_kind_sort_about_equally_many_masses():
    assert kind_of(Sampling(temperature=0)) == PLAIN
    assert kind_of(Sampling(top_p=0.9)) == kind_of(Sampling(min_p=0.1)) == kind_of(Sampling(logit_bias={0: 1})) == TOP_P
    assert kind_of(Sampling(top_k=1)) == kind_of(Sampling(top_k=64, top_p=0.5)) == TOP_K
    assert [kind_of(Sampling(top_k=k)) - TOP_K for k in (65, 128, 129, 4000)] == [1, 1, 2, 6]


@pytest.mark.parametrize(("longest", "symbols"), [(1, BUFFER), (16, BUFFER), (256, 1024)])
def test_a_stream_is_less_far_ahead_of_its_reader_where_symbols_are_long(longest, symbols):
    """A message may have all that the reader has not taken, and clients take 4 MB."""
    rows = Rows(4, 3, longest)
    rows.enter(0, StreamSpec(np.ones(1, np.int64), 1, Sampling(), 0, 0), 0.0)
    rows.settle()
    assert rows.room(0.0).tolist() == [symbols]
    assert rows.room(0.0)[0] * longest * 4 <= 2**20
