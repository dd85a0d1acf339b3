"""When a call that failed is made again: which errors mean that a server is away, and how long to wait."""

import random

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


def checked_seconds(retry_seconds: float) -> float:
    """Return `retry_seconds`. Raises ValueError for a negative number or NaN."""
    if not retry_seconds >= 0:
        raise ValueError(f"retry_seconds must be a number of at least 0, not {retry_seconds}")
    return retry_seconds
