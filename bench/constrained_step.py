"""What a step of the constrained serving graph costs beside one of the plain graph, in the server's decoder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rill.bench import BenchError
from rill.bundle import DECODE, DECODE_CONSTRAINED, Bundle
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import choose_device
from rill.serve.engine.states import States
from rill.vocabulary import Vocabulary

STEPS = 64  # of a call with few rows
ROW_STEPS = 1024  # of a call with many, all rows together
CLOCK = 1e-9  # seconds: less than any call takes
MEASURED = 0.06  # seconds of each side of a pair, about


@dataclass(frozen=True)
class Stepped:
    """Plain and constrained steps at one number of rows, with a table of so many states; times in microseconds.

    The ratios are the medians over the pairs: of times, and of the CPU times of the thread.
    """

    rows: int
    states: int
    plain_us: list[float]
    constrained_us: list[float]
    ratio: float
    cpu_ratio: float

    def __str__(self) -> str:
        times = f"plain {median(self.plain_us):.1f}, constrained {median(self.constrained_us):.1f} µs a step"
        return (
            f"graph, {self.rows} rows, {self.states:,} states: {times}: × {self.ratio:.3f}, CPU × {self.cpu_ratio:.3f}"
        )


class Steps:
    """The two graphs of a bundle on a device. Raises BenchError if it has no constrained one, StartError."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        if not bundle.constrained:
            raise BenchError(f"bundle {bundle.name!r} was exported before constraints; export its run again")
        self._bundle, self._decoder = bundle, Decoder(bundle, *choose_device(device))

    def compare(self, rows: int, states: int, pairs: int) -> Stepped:
        """Time both by turns, after one call of each."""
        steps, decoder = min(max(ROW_STEPS // rows, 1), STEPS), self._decoder
        feeds: dict[str, NDArray[Any]] = {
            "token": np.full(rows, self._bundle.vocabulary.start_id),
            "uniforms": np.random.default_rng(0).random((steps, rows), dtype=np.float32),
            "steps": np.full(rows, steps),
            "temperature": np.ones(rows, np.float32),
        }
        begin = States(self._bundle.states, rows, decoder.device, decoder.device_id).batch(np.arange(rows))
        plain_feeds = feeds | {"forced": np.full((steps, rows), -1)}
        constrained_feeds = feeds | {"automaton": np.arange(rows) % states}
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(value, decoder.device, decoder.device_id)
            for name, value in tables(self._bundle.vocabulary, states).items()
        }

        def plain() -> None:
            decoder.run(DECODE.key, plain_feeds, begin)

        def constrained() -> None:
            decoder.run(DECODE_CONSTRAINED.key, constrained_feeds, begin, values)

        _timed(plain, 1)
        _timed(constrained, 1)
        calls = max(round(MEASURED / _timed(plain, 1)[0]), 1)
        times = [(_timed(plain, calls), _timed(constrained, calls)) for _ in range(pairs)]
        return Stepped(
            rows=rows,
            states=states,
            plain_us=[1e6 * seconds / steps for (seconds, _), _ in times],
            constrained_us=[1e6 * seconds / steps for _, (seconds, _) in times],
            ratio=median(other / one for (one, _), (other, _) in times),
            cpu_ratio=median(other / max(one, CLOCK) for (_, one), (_, other) in times),
        )


def tables(vocabulary: Vocabulary, states: int) -> dict[str, NDArray[Any]]:
    """Return the tables of an automaton that never ends: transitions are random, a state allows half of the symbols."""
    draw, symbols = np.random.default_rng(0), len(vocabulary)
    is_forbidden = draw.random((states, symbols)) < 0.5
    special = [*vocabulary.never_ids, *vocabulary.end_ids]
    usual = next(index for index in range(symbols) if index not in special)
    is_forbidden[:, special] = True
    is_forbidden[:, usual] = False  # no state is without any
    return {
        "allowed": np.where(is_forbidden, np.float32(-np.inf), np.float32(0)),
        "transitions": draw.integers(states, size=states * symbols),
        "continues": np.ones((states, 1), np.float32),
        "reads": np.ones((states, 1), bool),
    }


def _timed(call: Callable[[], None], times: int) -> tuple[float, float]:
    """Return the seconds of one call, and the CPU seconds of this thread: means of several."""
    started, cpu = time.perf_counter(), time.thread_time()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times, (time.thread_time() - cpu) / times
