"""Turns of the models that share a device: by time; the next turn goes to the model that has used the least of it.

Two engines whose rounds run at once on one core only slow each other down. So each engine is a participant of the
device's turns, and as many rounds run at a time as the device has capacity for. When a long round ends, a model with
short rounds is often between two of them; if it is behind, capacity is kept for it, or else the models would share
the number of rounds and not the time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

AHEAD_SECONDS = 0.010  # that a participant may be ahead of one that is between two rounds, before it waits for that one
AWAY_SECONDS = 0.005  # after which nobody waits any longer for a participant between two rounds
CREDIT_SECONDS = 0.010  # that a returning participant may be behind the others; idle time earns no more than this


class TurnState(Enum):
    """What a participant is doing."""

    IDLE = "idle"
    WAITING = "waiting"
    RUNNING = "running"
    BETWEEN = "between"  # two rounds


class DeviceTurns:
    """Grants turns on one device, at most `capacity` at a time. `clock` counts seconds."""

    def __init__(self, capacity: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock, self.clock = threading.Lock(), clock
        self.participants: list[Participant] = []
        self.floor = 0.0  # seconds used by the busy participant that has used the least; never falls
        self._capacity = capacity

    def join(self) -> "Participant":
        """A new participant, for one engine."""
        with self.lock:
            self.participants.append(Participant(self))
            return self.participants[-1]

    def grant_turns(self) -> None:
        """Grant the turns that fit: urgent ones first, then by least time used. The caller has the lock."""
        now = self.clock()
        waiting, between, free = [], [], self._capacity
        for each in self.participants:
            match each.state:
                case TurnState.WAITING:
                    waiting.append(each)
                case TurnState.RUNNING:
                    free -= 1
                case TurnState.BETWEEN if now - each.since > AWAY_SECONDS:
                    each.state = TurnState.IDLE
                case TurnState.BETWEEN:
                    between.append(each)
        waiting.sort(key=lambda each: (not each.urgent, each.seconds_used))
        for each in waiting:
            behind = each.seconds_used - AHEAD_SECONDS
            kept = 0 if each.urgent else sum(other.seconds_used < behind for other in between)
            if free <= kept:
                return  # all that follow have used more
            each.grant()
            free -= 1


class Participant:
    """One engine among those that share a device; used by one thread at a time."""

    def __init__(self, turns: DeviceTurns) -> None:
        self._turns = turns
        self._granted = threading.Condition(turns.lock)
        self.state, self.urgent = TurnState.IDLE, False
        self.seconds_used = turns.floor  # in rounds, or credited
        self.since = 0.0  # when its current round began, or its last one ended

    @contextmanager
    def turn(self, urgent: bool = False) -> Iterator[None]:
        """Wait for a turn, and hold it. An urgent turn comes before others; its time counts like any other."""
        with self._turns.lock:
            self.request(urgent)
            while self.state is TurnState.WAITING:
                self._granted.wait(AWAY_SECONDS)
                self._turns.grant_turns()
        try:
            yield
        finally:
            with self._turns.lock:
                self.release()

    def idle(self) -> None:
        """Say that there is no next round for now, so that nobody waits for it."""
        with self._turns.lock:
            self.state = TurnState.IDLE
            self._turns.grant_turns()

    def close(self) -> None:
        """Leave for good."""
        with self._turns.lock:
            self._turns.participants.remove(self)
            self._turns.grant_turns()

    # ---- the caller has the lock

    def request(self, urgent: bool = False) -> None:
        """Wait from now on; the turn may be granted at once."""
        if self.state is TurnState.IDLE:
            self.seconds_used = max(self.seconds_used, self._turns.floor - CREDIT_SECONDS)
        self.state, self.urgent = TurnState.WAITING, urgent
        self._turns.grant_turns()

    def grant(self) -> None:
        """Begin the turn."""
        self.state, self.since = TurnState.RUNNING, self._turns.clock()
        self._granted.notify()

    def release(self) -> None:
        """End the turn, and add its time."""
        turns, now = self._turns, self._turns.clock()
        self.seconds_used += now - self.since
        self.state, self.since = TurnState.BETWEEN, now
        busy = [each.seconds_used for each in turns.participants if each.state is not TurnState.IDLE]
        turns.floor = max(turns.floor, min(busy))
        turns.grant_turns()
