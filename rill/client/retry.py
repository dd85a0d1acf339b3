"""When a call that failed is made again: which errors allow it, at which address, and after how long."""

import random
import time
from collections.abc import Callable

import grpc

from rill.client.errors import ServerError

RETRY_SECONDS = 30.0  # how long a client tries to continue, unless told otherwise
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds


def is_away(error: ServerError) -> bool:
    """Tell whether the same call may succeed later or at another address: a server is down, draining or full."""
    is_full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_seconds is not None
    return is_full or error.code is grpc.StatusCode.UNAVAILABLE


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


class Attempts:
    """The calls that one text, score, session or question takes: `address` is the number of the server to call next.

    Before anything was received (`has_begun`), each address is tried once. After that, calls are repeated for up to
    `retry_seconds` without progress. `timeout` is for all calls together, in seconds.
    """

    def __init__(
        self,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = 0
        self.has_begun = False
        self._addresses, self._retry_seconds, self._clock = addresses, retry_seconds, clock
        self._deadline = None if timeout is None else clock() + timeout
        self._failures = 0  # in a row, without progress
        self._failing_since: float | None = None
        self._backoff = Backoff()

    @property
    def is_first_failure(self) -> bool:
        """Tell whether exactly one call has failed since the last progress."""
        return self._failures == 1

    def time_left(self) -> float | None:
        """Return the time that the next call may take, in seconds; None if there is no limit."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 0.0)

    def progressed(self) -> None:
        """Note that something new was received: from here on there are `retry_seconds` again."""
        self.has_begun = True
        self._failures, self._failing_since = 0, None
        self._backoff.reset()

    def failed(self, failure: ServerError, broken: str = "", token_refused: bool = False) -> float:
        """Return how many seconds to wait before the next call. Raises the failure if there is not to be one.

        `broken` begins the message of the last failure. `token_refused`: the same address is to be called without the
        token.
        """
        if not (token_refused or self._may_repeat(failure)):
            raise failure
        now = self._clock()
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since
        if not self.has_begun:
            if self._failures >= self._addresses:
                raise failure
        elif now - self._failing_since >= self._retry_seconds:
            raise self._given_up(failure, broken)
        if not token_refused:
            self.address = (self.address + 1) % self._addresses
        return self._delay(failure, now - self._failing_since)

    def _may_repeat(self, failure: ServerError) -> bool:
        if not self.has_begun:
            return failure.code is grpc.StatusCode.UNAVAILABLE
        if not self._retry_seconds:
            return False
        match failure.code:
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.ABORTED:
                return failure.reason in ("ENGINE_ROUND_FAILED", "READER_STALLED")
            case grpc.StatusCode.FAILED_PRECONDITION:
                return self._addresses > 1 and failure.reason == "RESUME_TOKEN_OTHER_MODEL"
            case _:
                return is_away(failure)

    def _delay(self, failure: ServerError, failing_seconds: float) -> float:
        """No delay until every address has failed, and none beyond the last moment to try."""
        if self._failures < self._addresses or not self.has_begun:
            return 0.0
        delay = min(self._backoff.next(failure.retry_seconds), self._retry_seconds - failing_seconds)
        left = self.time_left()
        return delay if left is None else min(delay, left)

    def _given_up(self, failure: ServerError, broken: str) -> ServerError:
        return ServerError(
            failure.code,
            f"{broken} and could not be continued within {self._retry_seconds:g} s "
            f"({self._failures - 1} attempts): {failure}",
            failure.retry_seconds,
            failure.reason,
        )


def checked_retry_seconds(retry_seconds: float) -> float:
    """Return `retry_seconds`. Raises ValueError for a negative number or NaN."""
    if not retry_seconds >= 0:
        raise ValueError(f"retry_seconds must be a number of at least 0, not {retry_seconds}")
    return retry_seconds
