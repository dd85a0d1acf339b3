"""Turns of the models that share a device: by time, and next is who has had the least of it.

Two engines whose rounds run at once on one core only disturb each other. So each has a lane of the device's turnstile,
which lets as many rounds through at a time as there are places. A model with short rounds is between two of them when
a long one ends; if it is behind, the place is kept for it, or else calls would be shared and not time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

AHEAD_SECONDS = 0.010  # that a lane may have had more than one that is between two rounds, before it waits for that one
AWAY_SECONDS = 0.005  # after which nobody waits for it any more
CREDIT_SECONDS = 0.010  # that a lane which comes back may have had less than the others; what it did not want is lost


class Stage(Enum):
    """What a lane is doing."""

    IDLE = "idle"
    WAITS = "waits"
    RUNS = "runs"
    BETWEEN = "between"  # two rounds


class DeviceTurns:
    """Lets rounds through, at most `places` at a time. `clock` counts seconds."""

    def __init__(self, places: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock, self.clock = threading.Lock(), clock
        self.lanes: list[Lane] = []
        self.least = 0.0  # seconds that the busy lane with the least has had: never falls
        self._places = places

    def lane(self) -> "Lane":
        """A new lane, for one engine."""
        with self.lock:
            self.lanes.append(Lane(self))
            return self.lanes[-1]

    def let_through(self) -> None:
        """Let go who may: the urgent ones first, then who has had the least. The caller has the lock."""
        now = self.clock()
        waiting, between, free = [], [], self._places
        for lane in self.lanes:
            match lane.stage:
                case Stage.WAITS:
                    waiting.append(lane)
                case Stage.RUNS:
                    free -= 1
                case Stage.BETWEEN if now - lane.since > AWAY_SECONDS:
                    lane.stage = Stage.IDLE
                case Stage.BETWEEN:
                    between.append(lane)
        waiting.sort(key=lambda lane: (not lane.urgent, lane.had))
        for lane in waiting:
            kept = 0 if lane.urgent else sum(other.had + AHEAD_SECONDS < lane.had for other in between)
            if free <= kept:
                return  # those behind it have had more
            lane.go()
            free -= 1


class Lane:
    """One engine's way through a turnstile; used by one thread at a time."""

    def __init__(self, turnstile: DeviceTurns) -> None:
        self._turnstile = turnstile
        self._opens = threading.Condition(turnstile.lock)
        self.stage, self.urgent = Stage.IDLE, False
        self.had = turnstile.least  # seconds of rounds, or what counts as such
        self.since = 0.0  # when it began to run, or ended

    @contextmanager
    def round(self, urgent: bool = False) -> Iterator[None]:
        """Wait for a place, and have it. An urgent round comes before all that are not; it counts like any other."""
        with self._turnstile.lock:
            self.ask(urgent)
            while self.stage is Stage.WAITS:
                self._opens.wait(AWAY_SECONDS)
                self._turnstile.let_through()
        try:
            yield
        finally:
            with self._turnstile.lock:
                self.done()

    def idle(self) -> None:
        """There is no next round for now: nobody waits for it."""
        with self._turnstile.lock:
            self.stage = Stage.IDLE
            self._turnstile.let_through()

    def close(self) -> None:
        """There will be no round any more."""
        with self._turnstile.lock:
            self._turnstile.lanes.remove(self)
            self._turnstile.let_through()

    # ---- with the lock

    def ask(self, urgent: bool = False) -> None:
        """Wait from now on; it may be let through at once."""
        if self.stage is Stage.IDLE:
            self.had = max(self.had, self._turnstile.least - CREDIT_SECONDS)
        self.stage, self.urgent = Stage.WAITS, urgent
        self._turnstile.let_through()

    def go(self) -> None:
        """A place is free for it."""
        self.stage, self.since = Stage.RUNS, self._turnstile.clock()
        self._opens.notify()

    def done(self) -> None:
        """The round is over."""
        turnstile, now = self._turnstile, self._turnstile.clock()
        self.had += now - self.since
        self.stage, self.since = Stage.BETWEEN, now
        busy = [lane.had for lane in turnstile.lanes if lane.stage is not Stage.IDLE]
        turnstile.least = max(turnstile.least, min(busy))
        turnstile.let_through()
