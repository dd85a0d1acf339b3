"""Which errors mean that a server is away, and how long to wait."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.client.retry import Attempts, Backoff, FirstContact, is_away

Code = grpc.StatusCode
GONE = ServerError(Code.UNAVAILABLE, "gone")
FULL = ServerError(Code.RESOURCE_EXHAUSTED, "the waiting line is full", 1.0)


def failure(code, origin, details="lost"):
    error = ServerError(code, details)
    error.origin = origin
    return error


REFUSED = failure(Code.UNAVAILABLE, Origin.CONNECTION, "failed to connect")
UNTRUSTED = failure(Code.UNAVAILABLE, Origin.TLS, "another host")
LOST = failure(Code.UNKNOWN, Origin.NETWORK)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (GONE, True),
        (FULL, True),
        (LOST, True),
        (failure(Code.INTERNAL, Origin.NETWORK), True),
        (failure(Code.INTERNAL, Origin.SERVER), False),
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


def outcome(attempts, now, *failures, seconds_each=0.01):
    """How many calls, for how long, and the error, when these addresses fail like that for ever."""
    calls = [0] * len(failures)
    while True:
        address = attempts.address
        calls[address] += 1
        now[0] += seconds_each
        try:
            now[0] += attempts.failed(failures[address], "the text broke")
        except ServerError as error:
            return calls, now[0], error


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("lost", [GONE, FULL, LOST, REFUSED])
def test_one_address_is_called_again_within_the_retry_time(lost, begun):
    now = [0.0]
    attempts = Attempts(1, 30, clock=lambda: now[0])
    if begun:
        attempts.progressed()
    (calls,), seconds, error = outcome(attempts, now, lost)
    assert calls > 15
    assert 29 <= seconds < 31
    assert (error.code, error.origin, error.retry_seconds) == (lost.code, lost.origin, lost.retry_seconds)
    broken = f"the text broke and could not be continued within 30 s ({calls - 1} attempts): "
    assert str(error) == broken * begun + str(lost)


def test_a_full_server_beside_an_idle_one():
    """The next address at once, then the pause that the full ones ask for, then all of them again."""
    now = [0.0]
    attempts = Attempts(3, 30, clock=lambda: now[0])
    for _ in range(3):
        assert [attempts.failed(FULL), attempts.failed(FULL)] == [0, 0]
        assert 1 <= attempts.failed(FULL) <= 2
        now[0] += 1


def test_the_error_is_that_of_an_address_which_answers():
    for failures in ((FULL, REFUSED), (REFUSED, FULL), (LOST, FULL)):
        now = [0.0]
        calls, seconds, error = outcome(Attempts(2, 5, clock=lambda now=now: now[0]), now, *failures)
        assert (error.code, error.retry_seconds) == (FULL.code, 1)
        assert str(error) == "the waiting line is full"
        assert abs(calls[0] - calls[1]) <= 1
        assert 4 < seconds < 7


def test_what_no_other_call_mends_is_raised_at_once():
    for code in (Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.NOT_FOUND, Code.INTERNAL):
        for addresses in (1, 2):
            refused = ServerError(code, "no")
            with pytest.raises(ServerError) as caught:
                Attempts(addresses).failed(refused)
            assert caught.value is refused


def test_nothing_listens_there():
    """A command tells that soon. A server that was there is waited for."""
    now = [0.0]
    _, seconds, error = outcome(Attempts(2, 30, None, lambda: now[0], FirstContact(3)), now, REFUSED, REFUSED)
    assert 2.9 <= seconds < 5.1
    assert str(error) == "failed to connect"
    _, seconds, _ = outcome(Attempts(2, 30, None, lambda: now[0], FirstContact(3)), now, REFUSED, GONE)
    assert seconds > 30
    began = Attempts(2, 30, None, lambda: now[0], FirstContact(3))
    began.progressed()
    before = now[0]
    assert outcome(began, now, REFUSED, REFUSED)[1] - before >= 30
    contact = FirstContact(3)
    Attempts(1, contact=contact).progressed()
    before = now[0]
    assert outcome(Attempts(1, 30, None, lambda: now[0], contact), now, REFUSED)[1] - before > 29
    before = now[0]
    assert (
        outcome(Attempts(1, 1, None, lambda: now[0], FirstContact(9)), now, REFUSED)[1] - before < 2
    )  # the shorter of both


def test_certificates_do_not_mend_themselves():
    now = [0.0]
    calls, _, error = outcome(Attempts(2, 30, clock=lambda: now[0]), now, UNTRUSTED, UNTRUSTED)
    assert calls == [1, 1]
    assert str(error) == "another host"
    calls, _, error = outcome(Attempts(2, 30, clock=lambda: now[0]), now, UNTRUSTED, GONE)
    assert calls[1] > 15
    assert str(error) == "gone"


def test_without_retry_seconds_each_address_is_called_once():
    now = [0.0]
    for lost in (GONE, FULL, LOST, REFUSED):
        calls, _, error = outcome(Attempts(3, 0, clock=lambda: now[0]), now, lost, lost, lost)
        assert calls == [1, 1, 1]
        assert str(error) == str(lost)


def test_time_that_is_up():
    """The caller's own deadline ends it, with what failed before; a proxy's does not."""
    now = [0.0]
    passed = failure(Code.DEADLINE_EXCEEDED, Origin.NETWORK, "Deadline Exceeded")
    attempts = Attempts(1, 30, 9, lambda: now[0])
    attempts.progressed()
    assert attempts.failed(passed) <= 0.05
    assert attempts.failed(GONE) <= 0.1
    now[0] = 8.999
    with pytest.raises(ServerError, match=r"^Deadline Exceeded; the last attempt before: gone$") as caught:
        attempts.failed(passed)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert Attempts(1, 30).failed(passed) <= 0.05  # nobody else set one
    now = [0.0]  # with no time left for another call, the error tells what there is to be waited for
    (calls,), seconds, error = outcome(Attempts(1, 30, 3.5, lambda: now[0]), now, FULL)
    assert (calls, error.code, error.retry_seconds) == (4, FULL.code, 1)
    assert seconds < 3.5


def test_a_proxy_that_forgot_its_routes():
    """A method that was there is there again soon; one that never was is not."""
    for origin in (Origin.SERVER, Origin.NETWORK):
        unknown = failure(Code.UNIMPLEMENTED, origin, "Received http2 header with status: 404")
        attempts = Attempts(1)
        if origin is Origin.SERVER:
            with pytest.raises(ServerError):
                attempts.failed(unknown)
        attempts.progressed()
        assert attempts.failed(unknown) <= 0.05


@pytest.mark.parametrize("error", [GONE, FULL, REFUSED, LOST])
def test_a_call_that_nothing_answers_is_given_up_sooner_than_one_that_broke(error):
    now = [0.0]
    attempts = Attempts(2, 30, clock=lambda: now[0], contact=FirstContact(None, begin_seconds=0))
    assert attempts.failed(error) == 0.0  # the other address
    with pytest.raises(ServerError):
        attempts.failed(error)
    attempts = Attempts(2, 30, clock=lambda: now[0], contact=FirstContact(None, begin_seconds=0))
    attempts.progressed()
    while now[0] < 29:
        now[0] += attempts.failed(error) + 0.1
    assert now[0] >= 29


@pytest.mark.parametrize(
    ("code", "reason", "addresses", "has_begun", "is_repeated"),
    [
        (Code.FAILED_PRECONDITION, "MODEL_WITHOUT_CONSTRAINTS", 1, True, False),
        (Code.FAILED_PRECONDITION, "MODEL_WITHOUT_CONSTRAINTS", 2, False, True),
        (Code.FAILED_PRECONDITION, "ACTION_OUT_OF_ORDER", 2, True, False),
        (Code.INTERNAL, "COMPILER_FAILED", 2, False, False),  # the constraint may be what ends compilers
        (Code.INTERNAL, "COMPILER_FAILED", 1, True, True),
    ],
)
def test_a_constraint_may_do_elsewhere_or_later(code, reason, addresses, has_begun, is_repeated):
    attempts = Attempts(addresses)
    if has_begun:
        attempts.progressed()
    error = ServerError(code, "no", reason=reason)
    if is_repeated:
        assert attempts.failed(error) >= 0
    else:
        with pytest.raises(ServerError):
            attempts.failed(error)
