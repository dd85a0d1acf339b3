"""When a call that failed is made again: which errors allow it, at which address, and after how long."""

import random
import time
from collections.abc import Callable

import grpc

from rill.client import values
from rill.client.errors import ServerError
from rill.client.origin import Origin

RETRY_SECONDS = 30.0  # how long a client tries to continue, unless told otherwise
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds
SHORTEST_CALL = 0.1  # seconds: with less than this left, what failed is more telling than that time is up
CLOCKS_APART = 0.05  # seconds: at most so much of a deadline is left here when gRPC says that it has passed


def is_full(error: ServerError) -> bool:
    """Tell whether a server has no room now, and said when to try again."""
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_seconds is not None


def is_away(error: ServerError) -> bool:
    """Tell whether the same call may succeed later or elsewhere: a server is down, draining or full, or the call was
    lost on its way.
    """
    return is_full(error) or error.code is grpc.StatusCode.UNAVAILABLE or error.origin is not Origin.SERVER


class Backoff:
    """Delays between attempts: random, from 0 to a limit that doubles from `first` to `longest` seconds.

    The randomness ("full jitter") keeps clients that failed together from returning together.
    """

    def __init__(self, first: float = FIRST_WAIT, longest: float = LONGEST_WAIT) -> None:
        self._first, self._longest = first, longest
        self._failures = 0

    def next(self, at_least: float | None = None) -> float:
        """Return the next delay in seconds; `at_least` is what the server asked for."""
        limit = min(self._longest, self._first * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return max(random.uniform(0, limit), at_least or 0.0)

    def reset(self) -> None:
        """Begin with short delays again, after a success."""
        self._failures = 0


class FirstContact:
    """How long a client tries a call that no server has answered; by default as long as one that broke.

    `seconds` are those where nothing listens, until a server has answered the client once; `begin_seconds` are for each
    call.
    """

    def __init__(self, seconds: float | None, begin_seconds: float | None = None) -> None:
        self.seconds = None if seconds is None else values.seconds("connect_seconds", seconds)
        self.begin_seconds = None if begin_seconds is None else values.seconds("begin_seconds", begin_seconds)

    def made(self) -> None:
        """Note that a server has answered: one that is lost now is waited for."""
        self.seconds = None


class Attempts:
    """The calls that one text, score, session or question takes: `address` is the number of the server to call next.

    Calls are repeated for up to `retry_seconds` without progress, at one address after the other, and after all of them
    with a pause. Before anything was received (`has_begun`), each is called at least once. `contact` is the client's,
    if it has a limit of its own where nothing listens. `timeout` is for all calls together, in seconds.
    """

    def __init__(
        self,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        contact: FirstContact | None = None,
    ) -> None:
        self.address = 0
        self.has_begun = False
        self._addresses, self._retry_seconds, self._clock = addresses, retry_seconds, clock
        self._contact = contact or FirstContact(None)
        self._deadline = None if timeout is None else clock() + timeout
        self._failures = 0  # in a row, without progress
        self._failing_since = 0.0
        self._last: dict[int, ServerError] = {}  # of each address, without progress
        self._backoff = Backoff()

    @property
    def is_interrupted(self) -> bool:
        """Tell whether the last failure began an outage; before any success, each address has to fail for that."""
        return self._failures == (1 if self.has_begun else self._addresses)

    def time_left(self) -> float | None:
        """Return the time that the next call may take, in seconds; None if there is no limit."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 0.0)

    def progressed(self) -> None:
        """Note that something new was received: from here on there are `retry_seconds` again."""
        self.has_begun = True
        self._contact.made()
        self._failures = 0
        self._last.clear()
        self._backoff.reset()

    def failed(self, failure: ServerError, broken: str = "", token_refused: bool = False) -> float:
        """Return how many seconds to wait before the next call. Raises the failure if there is not to be one.

        `broken` begins the message of the last failure. `token_refused`: the same address is to be called without the
        token.
        """
        if not (token_refused or self._may_repeat(failure)):
            raise self._final(failure)
        now = self._clock()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        self._last.pop(self.address, None)  # so that the latest is the last one
        self._last[self.address] = failure
        failing_seconds = now - self._failing_since
        delay, left = self._delay(failing_seconds), self.time_left()
        is_late = left is not None and not self.has_begun and delay > left - SHORTEST_CALL
        if is_late or self._is_hopeless(failing_seconds):
            raise self._given_up(broken)
        if not token_refused:
            self.address = (self.address + 1) % self._addresses
        return delay if left is None else min(delay, left)

    def _may_repeat(self, failure: ServerError) -> bool:
        if self.has_begun and not self._retry_seconds:
            return False
        match failure.code:
            case grpc.StatusCode.DEADLINE_EXCEEDED if (left := self.time_left()) is not None and left < CLOCKS_APART:
                return False  # the caller's own, and not a proxy's
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.ABORTED if failure.origin is Origin.SERVER:
                chance = ("COMPILER_FAILED",) if self.has_begun else ()  # the constraint was compiled before
                return failure.reason in ("ENGINE_ROUND_FAILED", "READER_STALLED", "SESSION_IDLE", *chance)
            case grpc.StatusCode.FAILED_PRECONDITION:
                others = (
                    "RESUME_TOKEN_OTHER_MODEL",
                    "MODEL_WITHOUT_CONSTRAINTS",
                )  # another bundle, or an earlier export
                return self._addresses > 1 and failure.reason in others
            case grpc.StatusCode.UNIMPLEMENTED:  # a proxy that is being reloaded: the method was there
                return self.has_begun
            case _:
                return is_away(failure)

    def _is_hopeless(self, failing_seconds: float) -> bool:
        """Tell whether the failures of all addresses are final by now."""
        if self.has_begun:
            return failing_seconds >= self._retry_seconds
        if self._failures < self._addresses:
            return False
        return all(failing_seconds >= self._patience(failure) for failure in self._last.values())

    def _patience(self, failure: ServerError) -> float:
        """Return for how long an address is called that has not answered the call yet."""
        if failure.origin is Origin.TLS or failure.code is grpc.StatusCode.FAILED_PRECONDITION:
            return 0.0
        seconds = self._contact.seconds
        if seconds is not None and failure.origin is Origin.CONNECTION:
            return min(seconds, self._begin_seconds)
        return self._begin_seconds

    @property
    def _begin_seconds(self) -> float:
        seconds = self._contact.begin_seconds
        return self._retry_seconds if seconds is None else seconds

    def _delay(self, failing_seconds: float) -> float:
        """No delay until every address has failed once more, and none beyond the last moment to try."""
        if self._failures % self._addresses:
            return 0.0
        asked = [failure.retry_seconds for failure in self._last.values() if failure.retry_seconds is not None]
        limit = self._retry_seconds if self.has_begun else self._begin_seconds
        return min(self._backoff.next(min(asked, default=None)), max(limit - failing_seconds, 0.0))

    def _given_up(self, broken: str) -> ServerError:
        """Return the failure of the address called last, or that of another one which at least answered."""
        last = [self._last.pop(self.address), *self._last.values()]
        failure = next((failure for failure in last if failure.origin is Origin.SERVER), last[0])
        if not self.has_begun:
            return failure
        return failure.reworded(
            f"{broken} and could not be continued within {self._retry_seconds:g} s "
            f"({self._failures - 1} attempts): {failure}"
        )

    def _final(self, failure: ServerError) -> ServerError:
        """Return a failure that ends all attempts; where time is up, with the reason for having needed it."""
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and self._last:
            return failure.reworded(f"{failure}; the last attempt before: {next(reversed(self._last.values()))}")
        return failure
