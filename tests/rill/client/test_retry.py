"""Which errors mean that a server is away, and how long to wait."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.client.errors import ServerError
from rill.client.retry import Attempts, Backoff, is_away

Code = grpc.StatusCode
GONE = ServerError(Code.UNAVAILABLE, "gone")


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (GONE, True),
        (ServerError(Code.RESOURCE_EXHAUSTED, "the waiting line is full", 1.0), True),
        (ServerError(Code.RESOURCE_EXHAUSTED, "the message is too large"), False),
        (ServerError(Code.CANCELLED, "cancelled by the application"), False),
        (ServerError(Code.INVALID_ARGUMENT, "no"), False),
    ],
)
def test_what_means_away(error, away):
    assert is_away(error) is away


@given(st.floats(0.01, 1), st.floats(1, 10), st.lists(st.floats(0, 20), max_size=40))
def test_delays_grow_up_to_a_limit(first, longest, requested):
    backoff = Backoff(first, longest)
    for failures, at_least in enumerate(requested):
        assert at_least <= backoff.next(at_least) <= max(min(first * 2**failures, longest), at_least)
    backoff.reset()
    assert backoff.next() <= first


@given(st.integers(1, 4), st.floats(0.1, 60), st.floats(0, 60))
def test_attempts_end_in_time_and_try_every_address(addresses, retry_seconds, step):
    now, called = [0.0], []
    attempts = Attempts(addresses, retry_seconds, clock=lambda: now[0])
    attempts.progressed()

    def fail():
        while True:
            called.append(attempts.address)
            delay = attempts.failed(GONE, "the text broke")
            assert delay == 0 or len(called) >= addresses
            now[0] += delay + step + 1e-3

    with pytest.raises(ServerError, match="the text broke and could not be continued within") as caught:
        fail()
    assert caught.value.code is Code.UNAVAILABLE
    assert called == [number % addresses for number in range(len(called))]
    assert retry_seconds <= now[0] <= retry_seconds + step + 1e-2
