"""The time of each stage of an engine round, by the server's own timers (`rill serve --profile FILE`)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rill.bench import BenchError

FLAG = "--profile"
ENGINE = ("schedule", "assemble", "run", "harvest", "hand_over", "idle")  # one thread
LOOP = ("decode", "serialise", "write")  # the event loop
COUNTS = ("rounds", "steps", "characters", "messages")
STREAMS = (1, 64)


@dataclass(frozen=True)
class Profile:
    """A server's whole life under a load of `streams` streams, its start and warm-up included.

    `seconds`, `us_per_round` and `us_per_character` are by stage. The stages of the engine's thread add up to its time;
    those of the event loop run beside it.
    """

    streams: int
    rounds: int
    steps: int
    characters: int
    messages: int
    elapsed_seconds: float
    seconds: dict[str, float]
    us_per_round: dict[str, float]
    us_per_character: dict[str, float]


def read_profile(path: Path, streams: int) -> Profile:
    """Read what a server has written. Raises BenchError if it is not a profile."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        counts = {name: int(found[name]) for name in COUNTS}
        seconds = {stage: float(found["seconds"][stage]) for stage in ENGINE + LOOP}
        elapsed = float(found["elapsed_seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"the server left no readable profile: {type(error).__name__}: {error}") from None
    if not (counts["rounds"] and counts["characters"]):
        raise BenchError("the server's profile has no rounds; use a larger --seconds")
    return Profile(
        streams,
        **counts,
        elapsed_seconds=elapsed,
        seconds=seconds,
        us_per_round={stage: 1e6 * value / counts["rounds"] for stage, value in seconds.items()},
        us_per_character={stage: 1e6 * value / counts["characters"] for stage, value in seconds.items()},
    )
