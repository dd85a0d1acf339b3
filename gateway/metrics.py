"""Prometheus metrics of the gateway. Times are in seconds; `path` is an endpoint's template, or `other`."""

from functools import partial

import prometheus_client
from prometheus_client import CollectorRegistry, disable_created_metrics

disable_created_metrics()  # they would double the number of series

REGISTRY = CollectorRegistry()  # a server's figures have some of the same names, and tests load both
for _collector in (
    prometheus_client.ProcessCollector,
    prometheus_client.PlatformCollector,
    prometheus_client.GCCollector,
):
    _collector(registry=REGISTRY)

Counter = partial(prometheus_client.Counter, registry=REGISTRY)
Gauge = partial(prometheus_client.Gauge, registry=REGISTRY)
Histogram = partial(prometheus_client.Histogram, registry=REGISTRY)

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)

REQUESTS = Counter("rill_http_requests", "Finished requests, by HTTP status.", ["method", "path", "status"])
REQUEST_SECONDS = Histogram(
    "rill_http_request_seconds",
    "Time from the arrival of a request to the end of its answer.",
    ["path"],
    buckets=_SECONDS,
)
FIRST_BYTE_SECONDS = Histogram(
    "rill_http_first_byte_seconds",
    "Time from the arrival of a request to the first byte of its answer's body, or the first frame.",
    ["path"],
    buckets=_SECONDS,
)
RUNNING = Gauge("rill_http_requests_running", "Requests that are being answered, WebSockets included.", ["path"])
SENT = Counter("rill_http_sent_bytes", "Bytes of answers' bodies and of frames.", ["path"])
RECEIVED = Counter("rill_http_received_bytes", "Bytes of requests' bodies and of frames.", ["path"])
CONNECTIONS = Gauge("rill_http_connections", "Open connections.")
DROPPED_LINES = Counter("rill_dropped_log_lines", "Log lines lost because stderr was not read.")
