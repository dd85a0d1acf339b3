"""The waiting line before the compiler, which compiles one constraint at a time.

A constraint takes milliseconds, a hostile one as long as the compiler lets it: a caller that has many must not hold up
the others. So the next constraint is one of the client that has used the least of the compiler's time since it has been
in the line, and among those one of the connection that has. Nobody waits for what has been compiled before.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rill.bundle import Bundle
from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.patterns import Pattern
from rill.serve.errors import DrainingError, WaitingLineFullError
from rill.vocabulary import Vocabulary

MOST_WAITING = 1024  # constraints
MOST_OF_A_CLIENT = 256

Key = tuple[str, Pattern]


class Compiles(Protocol):
    """The compiler, `rill.serve.constraints.compiler`."""

    def cached(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton | None:
        """Return what has been compiled before. Raises ConstraintError if that failed."""

    async def compile(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton:
        """Compile a constraint. Raises ConstraintError."""


class Caller(NamedTuple):
    """Whose call it is: a client, as the limits on streams see it, and its connection."""

    client: str
    connection: str


class _Shares:
    """The compiler's time, in seconds, that those in the line have used since they came: clients and connections.

    A newcomer counts as having used as much as the one that has used the least.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], float] = {}
        self._waits: Counter[tuple[str, ...]] = Counter()

    @contextmanager
    def waiting(self, caller: Caller) -> Iterator[None]:
        """Let a caller be in the line."""
        keys = (caller[:1], caller[:])
        for key in keys:
            if not self._waits[key]:
                others = [used for other, used in self._seconds.items() if other[:-1] == key[:-1]]
                self._seconds[key] = min(others, default=0.0)
            self._waits[key] += 1
        try:
            yield
        finally:
            for key in keys:
                self._waits[key] -= 1
                if not self._waits[key]:
                    del self._waits[key], self._seconds[key]

    def used(self, caller: Caller) -> tuple[float, float]:
        """Return the seconds of a caller's client, and of its connection."""
        return self._seconds[caller[:1]], self._seconds[caller[:]]

    def charge(self, caller: Caller, seconds: float) -> None:
        """Add to what a caller has used, if it is still in the line."""
        for key in (caller[:1], caller[:]):
            if key in self._seconds:
                self._seconds[key] += seconds


@dataclass(eq=False)
class _Job:
    """A constraint that waits or is being compiled; `client` brought it, `callers` wait for it."""

    bundle: Bundle
    pattern: Pattern
    client: str
    outcome: asyncio.Future[Automaton | Exception]
    callers: Counter[Caller] = field(default_factory=Counter)


class CompileLine:
    """The line before `compiler`; used on the event loop only."""

    def __init__(self, compiler: Compiles) -> None:
        self._compiler, self._shares = compiler, _Shares()
        self._waiting: dict[Key, _Job] = {}  # in the order of their arrival
        self._running: dict[Key, _Job] = {}  # one at most
        self._working: asyncio.Task[None] | None = None
        self._is_draining = False

    async def compile(self, bundle: Bundle, pattern: Pattern, caller: Caller) -> Automaton:
        """Return the automaton of a constraint.

        Raises ConstraintError, WaitingLineFullError if too many wait already, and DrainingError.
        """
        automaton = self._compiler.cached(bundle.vocabulary, pattern)
        if automaton is not None:
            return automaton
        key = (bundle.model_id, pattern)
        job = self._running.get(key) or self._waiting.get(key) or self._new_job(key, bundle, caller)
        job.callers[caller] += 1
        try:
            with self._shares.waiting(caller):
                outcome = await asyncio.shield(job.outcome)  # others may wait for it, too
        finally:
            job.callers[caller] -= 1
            job.callers += Counter()  # without callers that have left
            if not job.callers and self._waiting.get(key) is job:
                del self._waiting[key]  # what has begun is completed, and kept for the next caller
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def drain(self) -> None:
        """Refuse those that wait, and all that come."""
        self._is_draining = True
        for job in (*self._waiting.values(), *self._running.values()):
            if not job.outcome.done():
                job.outcome.set_result(_draining())
        self._waiting.clear()

    def _new_job(self, key: Key, bundle: Bundle, caller: Caller) -> _Job:
        if self._is_draining:
            raise _draining()
        own = sum(job.client == caller.client for job in self._waiting.values())
        if own >= MOST_OF_A_CLIENT or len(self._waiting) >= MOST_WAITING:
            raise WaitingLineFullError(f"{len(self._waiting)} constraints wait to be compiled; try again later")
        job = _Job(bundle, key[1], caller.client, asyncio.get_running_loop().create_future())
        self._waiting[key] = job
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return job

    async def _work(self) -> None:
        """Compile what waits, one after another."""
        while self._waiting:
            ranks = {key: self._first(job) for key, job in self._waiting.items()}
            key = min(ranks, key=lambda key: self._shares.used(ranks[key]))  # of equals, the one that came first
            job = self._running[key] = self._waiting.pop(key)
            started = time.monotonic()
            outcome: Automaton | Exception
            try:
                outcome = await self._compiler.compile(job.bundle.vocabulary, job.pattern)
            except Exception as error:  # any: those that wait for it must not wait forever
                outcome = error
            del self._running[key]
            self._shares.charge(ranks[key], time.monotonic() - started)
            if not job.outcome.done():
                job.outcome.set_result(outcome)
        self._working = None

    def _first(self, job: _Job) -> Caller:
        """Return the caller that has used the least, of those that wait for a constraint."""
        return min(job.callers, key=self._shares.used)


def _draining() -> DrainingError:
    return DrainingError("the server is shutting down and takes no new streams")
