"""Where a server's time goes (`--profile`): timers that are given to the engines and to the service."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from types import coroutine
from typing import Any, cast

from rill.files import output_file, replaced
from rill.serve.api.call import Call
from rill.serve.api.responses import ResponseBuilder, Sendable
from rill.serve.engine.rows import Round
from rill.serve.engine.timer import Function, StageTimer

ENGINE = ("schedule", "assemble", "run", "harvest", "hand_over", "idle")  # stages of the engine's thread, in turn
EVENT_LOOP = ("decode", "serialise", "write")


class Profile:
    """Seconds by stage, and counts; the timers of all models add to the same ones."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter(rounds=0, steps=0, characters=0, messages=0)
        self._started = time.perf_counter()

    def save(self, path: Path) -> None:
        """Write it as JSON. Seconds are of wall time: waiting for the GIL or a core is in them."""
        report = {
            **self.counts,
            "elapsed_seconds": time.perf_counter() - self._started,
            "seconds": {stage: self.seconds[stage] for stage in ENGINE + EVENT_LOOP},
        }
        with replaced(output_file(str(path))) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())


class ProfilingTimer(StageTimer):
    """Adds the stages and rounds of one engine to `profile`."""

    def __init__(self, profile: Profile) -> None:
        self._profile, self._last = profile, time.perf_counter()

    def lap(self, stage: str) -> None:
        """See StageTimer."""
        now = time.perf_counter()
        self._profile.seconds[stage] += now - self._last
        self._last = now

    def count(self, r: Round) -> None:
        """See StageTimer."""
        self._profile.counts.update(rounds=1, steps=r.time, characters=int((r.steps - r.prompted).sum()))

    def around(self, stage: str, function: Function) -> Function:
        """See StageTimer."""
        return cast(Function, partial(_timed, self._profile, stage, function))


class ProfilingResponses(ResponseBuilder):
    """Counts and times the messages that are built."""

    def __init__(self, profile: Profile, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._profile = profile

    def output(self, *arguments: Any) -> Any:
        """See ResponseBuilder."""
        self._profile.counts["messages"] += 1
        return _timed(self._profile, "serialise", super().output, *arguments)

    def with_logprobs(self, *arguments: Any) -> Any:
        """See ResponseBuilder."""
        return _timed(self._profile, "serialise", super().with_logprobs, *arguments)

    def scores(self, *arguments: Any) -> Any:
        """See ResponseBuilder."""
        self._profile.counts["messages"] += 1
        return _timed(self._profile, "serialise", super().scores, *arguments)


class ProfilingCall(Call):
    """Times the writes of a call."""

    def __init__(self, profile: Profile, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seconds = profile.seconds

    async def write(self, message: Sendable) -> None:
        """See Call."""
        await _timed_write(super().write(message), self._seconds)


@coroutine
def _timed_write(write: Coroutine[Any, Any, None], seconds: defaultdict[str, float]) -> Generator[Any, Any, None]:
    """Await a write, and add up the time that it runs: the time between its waits."""
    resume = partial(write.send, None)
    while True:
        started = time.perf_counter()
        try:
            waits_for = resume()
        except StopIteration:
            return
        finally:
            seconds["write"] += time.perf_counter() - started
        try:
            resume = partial(write.send, (yield waits_for))
        except BaseException as error:  # a cancellation belongs to the write
            resume = partial(write.throw, error)


def _timed(profile: Profile, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
    started = time.perf_counter()
    result = function(*arguments)
    profile.seconds[stage] += time.perf_counter() - started
    return result
