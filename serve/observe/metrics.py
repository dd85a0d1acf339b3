"""What Prometheus is told of a server: the series of each model, and the page that shows them.

Times are in seconds. Labels have few values: `model` is the name of a bundle that is or was served, empty where a call
has none. Everything here also works in prometheus_client's multi-process mode, where each process writes its figures to
files in the folder PROMETHEUS_MULTIPROC_DIR, and one of them, or another, shows their sums.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from rill.serve.errors import StartError

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Whether another process shows the page for this one.
IS_SHARED = FOLDER in os.environ

log = logging.getLogger("rill")

disable_created_metrics()  # a second series for each: when it began

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_DURATIONS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_CHARACTER_LATENCIES = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_ROUND_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.032, 0.064, 0.128, 0.256)
_POWERS = tuple(2**exponent for exponent in range(11))

TIME_TO_FIRST_CHARACTER = Histogram(
    "rill_time_to_first_character_seconds",
    "From a call's arrival (Interact: a Generate's) until the first character of its text was there.",
    ["model"],
    buckets=_LATENCIES,
)
INTER_CHARACTER_LATENCY = Histogram(
    "rill_inter_character_latency_seconds",
    "Per message after a text's first: the time since the message before, divided by the characters in it. "
    "Pace and slow readers are in it.",
    ["model"],
    buckets=_CHARACTER_LATENCIES,
)
QUEUE_TIME = Histogram(
    "rill_queue_time_seconds",
    "From a call's arrival (Interact: a Generate's) until its text entered its first engine round.",
    ["model"],
    buckets=_LATENCIES,
)
CALL_LATENCY = Histogram(
    "rill_call_latency_seconds",
    "From arrival to end, of calls that had a slot, however they ended.",
    ["model", "method"],
    buckets=_DURATIONS,
)
ROUND_TIME = Histogram(
    "rill_round_time_seconds",
    "One call of the serving graph for a batch of streams, without waiting for its turn.",
    ["model"],
    buckets=_ROUND_SECONDS,
)
ROUND_ROWS = Histogram("rill_round_rows", "Streams in an engine round.", ["model"], buckets=_POWERS)
ROUND_STEPS = Histogram(
    "rill_round_steps", "Characters a stream at most in an engine round.", ["model"], buckets=_POWERS
)

GENERATED = Counter("rill_generated_characters", "Generated characters that were sent.", ["model"])
PROMPT = Counter("rill_prompt_characters", "Characters of prompts and feeds that were read.", ["model"])
SCORED = Counter("rill_scored_characters", "Characters whose log-probability was sent.", ["model"])
CALLS = Counter("rill_calls", "Calls that are over, by their gRPC status.", ["method", "model", "code"])
RESUMES = Counter("rill_resumes", "Calls that went on from a resume token.", ["model"])
REJECTIONS = Counter("rill_rejections", "Calls that were refused before they had a slot.", ["model", "reason"])
RELOADS = Counter(
    "rill_reloads", "SIGHUPs: all bundles read (ok), some refused (partial), nothing changed (failed).", ["result"]
)
for _result in ("ok", "partial", "failed"):
    RELOADS.labels(_result)
DROPPED_LINES = Counter("rill_dropped_log_lines", "Log lines that were lost because stderr was not read.")

STREAMS_RUNNING = Gauge(
    "rill_streams_running", "Streams with a slot, parked ones included.", ["model"], multiprocess_mode="livesum"
)
STREAMS_WAITING = Gauge("rill_streams_waiting", "Calls in the waiting line.", ["model"], multiprocess_mode="livesum")
STREAMS_PARKED = Gauge(
    "rill_streams_parked",
    "Streams that wait for their reader, their pace, or what their reader wants next.",
    ["model"],
    multiprocess_mode="livesum",
)
MODELS = Gauge("rill_models", "Models that take calls.", multiprocess_mode="livemax")
MODEL_INFO = Gauge(
    "rill_model_info",
    "1 for each model that takes calls.",
    ["model", "model_id", "precision", "provider", "numerics"],
    multiprocess_mode="livemax",
)
BUILD_INFO = Gauge(
    "rill_build_info",
    "1: what serves.",
    ["version", "onnxruntime", "grpc", "python"],
    multiprocess_mode="livemax",
)


class ModelMetrics:
    """The series of the model `name` that change often, from 0 on; a model of the same name goes on with them."""

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
        """Some engine rounds are over: the rows, steps and seconds of each. Called by the engine thread."""
        for rows, steps, seconds in rounds:
            self._round_rows.observe(rows)
            self._round_steps.observe(steps)
            self._round_time.observe(seconds)


@cache
def of_model(name: str) -> ModelMetrics:
    """The series of a model, the same ones for the same name. They are never removed: name loaded bundles only."""
    return ModelMetrics(name)


# The series of these labels: to look them up takes longer than to count.
calls_of, rejections_of = cache(CALLS.labels), cache(REJECTIONS.labels)
call_latency_of = cache(CALL_LATENCY.labels)


@contextmanager
def page(host: str, port: int | None, folder: Path | None = None) -> Iterator[int | None]:
    """Show the figures at http://HOST:PORT/metrics meanwhile, by threads of its own. Port 0: a free one; None: no page.

    Gives the port. The figures are those of this process or, with `folder`, of all that run with it as
    PROMETHEUS_MULTIPROC_DIR. Raises StartError if the port cannot be had.
    """
    if port is None:
        yield None
        return
    registry = REGISTRY
    if folder:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))
    try:
        server, thread = start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        raise StartError(f"cannot show metrics on {host}:{port}: {error.strerror}") from None
    log.info("metrics: http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def shared_page(host: str, port: int | None) -> Iterator[dict[str, str]]:
    """As `page`, of all processes that have in their environment what this gives. Raises StartError."""
    if port is None:
        yield {}
        return
    with TemporaryDirectory(prefix="rill-metrics-") as folder, page(host, port, Path(folder)):
        yield {FOLDER: folder}


def forget(pid: int, environment: Mapping[str, str]) -> None:
    """A process that had this from `shared_page` has ended: what it had made stays counted, its streams are gone."""
    if environment:
        mark_process_dead(pid, environment[FOLDER])
