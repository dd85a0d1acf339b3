"""Prometheus metrics: the series of each model. `page` serves them; `engine_figures` adds up those of processes.

Times are in seconds. Labels have few values: `model` is the name of a bundle that is or was served, empty for a call
that has none.
"""

from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # they would double the number of series

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DURATIONS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_CHARACTER_LATENCIES = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_ROUND_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.032, 0.064, 0.128, 0.256)
_POWERS = tuple(2**exponent for exponent in range(11))

TIME_TO_FIRST_CHARACTER = Histogram(
    "rill_time_to_first_character_seconds",
    "Time from the arrival of a call (in Interact: of a Generate action) until its first character was generated.",
    ["model"],
    buckets=_LATENCIES,
)
INTER_CHARACTER_LATENCY = Histogram(
    "rill_inter_character_latency_seconds",
    "For each message after a text's first: the time since the previous message, divided by its characters. "
    "Includes pacing and slow readers.",
    ["model"],
    buckets=_CHARACTER_LATENCIES,
)
QUEUE_TIME = Histogram(
    "rill_queue_time_seconds",
    "Time from the arrival of a call (in Interact: of a Generate action) until its first engine round.",
    ["model"],
    buckets=_LATENCIES,
)
CALL_LATENCY = Histogram(
    "rill_call_latency_seconds",
    "Time from arrival to end of calls that had a slot, however they ended.",
    ["model", "method"],
    buckets=_DURATIONS,
)
ROUND_TIME = Histogram(
    "rill_round_time_seconds",
    "Duration of an engine round: one call of the serving graph for a batch of streams, without waiting.",
    ["model"],
    buckets=_ROUND_SECONDS,
)
ROUND_ROWS = Histogram("rill_round_rows", "Streams per engine round.", ["model"], buckets=_POWERS)
ROUND_STEPS = Histogram(
    "rill_round_steps", "Characters per stream and engine round, at most.", ["model"], buckets=_POWERS
)

GENERATED = Counter("rill_generated_characters", "Generated characters sent to clients.", ["model"])
PROMPT = Counter("rill_prompt_characters", "Characters read from prompts and feeds.", ["model"])
SCORED = Counter("rill_scored_characters", "Characters scored: log-probabilities sent to clients.", ["model"])
CALLS = Counter("rill_calls", "Finished calls, by gRPC status.", ["method", "model", "code"])
RESUMES = Counter("rill_resumes", "Calls that continued from a resume token.", ["model"])
REJECTIONS = Counter("rill_rejections", "Calls refused before they had a slot, by reason.", ["model", "reason"])
RELOADS = Counter(
    "rill_reloads", "Reloads by SIGHUP: all bundles read (ok), some refused (partial), none (failed).", ["result"]
)
for _result in ("ok", "partial", "failed"):
    RELOADS.labels(_result)
DROPPED_LINES = Counter("rill_dropped_log_lines", "Log lines lost because stderr was not read.")

MAX_STREAMS = Gauge("rill_max_streams", "Streams that the model runs at most at once: its slots.", ["model"])
STREAMS_RUNNING = Gauge("rill_streams_running", "Streams that hold a slot, including parked ones.", ["model"])
STREAMS_WAITING = Gauge("rill_streams_waiting", "Calls waiting for a slot.", ["model"])
STREAMS_PARKED = Gauge(
    "rill_streams_parked",
    "Streams with a slot that wait for their reader, their pace, or the next action.",
    ["model"],
)
MODELS = Gauge("rill_models", "Models that accept calls.")
MODEL_INFO = Gauge(
    "rill_model_info",
    "Always 1, for each model that accepts calls; details are in the labels.",
    ["model", "model_id", "precision", "provider", "numerics"],
)
BUILD_INFO = Gauge(
    "rill_build_info",
    "Always 1; versions are in the labels.",
    ["version", "onnxruntime", "grpc", "python"],
)


class ModelMetrics:
    """The frequently updated series of the model `name`; a later model of the same name continues them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.time_to_first_character = TIME_TO_FIRST_CHARACTER.labels(name)
        self.inter_character_latency = INTER_CHARACTER_LATENCY.labels(name)
        self.queue_time = QUEUE_TIME.labels(name)
        self.generated, self.prompt, self.scored = GENERATED.labels(name), PROMPT.labels(name), SCORED.labels(name)
        self.resumes = RESUMES.labels(name)
        self._round_time, self._round_rows = ROUND_TIME.labels(name), ROUND_ROWS.labels(name)
        self._round_steps = ROUND_STEPS.labels(name)

    def ran(self, rounds: Iterable[tuple[int, int, float]]) -> None:
        """Count engine rounds by their rows, steps and seconds. Called by the engine thread."""
        for rows, steps, seconds in rounds:
            self._round_rows.observe(rows)
            self._round_steps.observe(steps)
            self._round_time.observe(seconds)


@cache
def of_model(name: str) -> ModelMetrics:
    """Return the series of a model. They are never removed, so `name` must be that of a loaded bundle."""
    return ModelMetrics(name)


# The series for given labels; looking one up takes longer than counting.
calls_of, rejections_of = cache(CALLS.labels), cache(REJECTIONS.labels)
call_latency_of = cache(CALL_LATENCY.labels)


def count_unauthenticated() -> None:
    """Count a call that was refused for its credentials, under no method: the requested one may not exist."""
    calls_of("", "", "UNAUTHENTICATED").inc()
    rejections_of("", "unauthenticated").inc()
