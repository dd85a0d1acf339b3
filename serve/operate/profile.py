"""Where a server's time goes: timers around steps of the engine and of the service.

They are put there by `--profile` only; without it the steps are what they are.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from rill.serve.api.service import TextGeneration
from rill.serve.engine.loop import Engine
from rill.serve.engine.rows import Round
from rill.serve.models.model import Model

# Of the engine thread, by method; the rest of its time is between them.
ENGINE = {
    "_schedule": "schedule",
    "_assemble": "assemble",
    "_call": "run",
    "_update": "harvest",
    "_flush": "hand_over",
    "_sleep": "idle",
}


class Profile:
    """Seconds by stage, and counts; the engine of each model adds to the same ones."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter(rounds=0, steps=0, characters=0, messages=0)
        self._started = time.perf_counter()

    def watch(self, service: TextGeneration, models: list[Model]) -> None:
        """Put timers around everything."""
        for model in models:
            self._watch_engine(model.engine)
            self._around(model.engine, "_deliver", "decode")
        self._around(service.messages, "output", "serialise", lambda *_: self.counts.update(messages=1))
        self._around(service.messages, "with_logprobs", "serialise")
        generate, profile = service.Generate, self

        async def with_timed_writes(request: Any, context: Any) -> None:
            await generate(request, _TimedContext(context, profile.seconds))

        service.Generate = with_timed_writes

    def save(self, path: Path) -> None:
        """Write it as JSON. Seconds are of wall time: waiting for the GIL or a core is in them."""
        report = {
            **self.counts,
            "elapsed_seconds": time.perf_counter() - self._started,
            "seconds": {stage: self.seconds[stage] for stage in (*ENGINE.values(), "decode", "serialise", "write")},
        }
        path.write_text(json.dumps(report, indent=1) + "\n")

    def _watch_engine(self, engine: Engine) -> None:
        def count(r: Round, *_: object) -> None:
            self.counts.update(rounds=1, steps=r.time, characters=int((r.steps - r.prompted).sum()))

        for method, stage in ENGINE.items():
            self._around(engine, method, stage, count if method == "_call" else None)

    def _around(self, thing: object, method: str, stage: str, count: Callable[..., None] | None = None) -> None:
        original = getattr(thing, method)

        @wraps(original)
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments)
            self.seconds[stage] += time.perf_counter() - started
            if count:
                count(*arguments)
            return result

        setattr(thing, method, timed)


class _TimedContext:
    """A call's context whose `write` is timed."""

    def __init__(self, context: Any, seconds: defaultdict[str, float]) -> None:
        self._context, self._seconds = context, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await _Timed(self._context.write(message), self._seconds)


class _Timed:
    """Awaits a write; counted is what it does between its waits."""

    def __init__(self, write: Awaitable[None], seconds: defaultdict[str, float]) -> None:
        self._write, self._seconds = write, seconds

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._write.__await__()
        go_on = partial(steps.send, None)
        while True:
            started = time.perf_counter()
            try:
                waits_for = go_on()
            except StopIteration:
                return
            finally:
                self._seconds["write"] += time.perf_counter() - started
            try:
                go_on = partial(steps.send, (yield waits_for))
            except BaseException as error:  # a cancellation: it is the write's
                go_on = partial(steps.throw, error)
