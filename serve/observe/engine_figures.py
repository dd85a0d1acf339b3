"""One page of metrics for several processes (`--engines`): each sends its figures to the parent, which adds them up.

Nothing is kept in files, which a full or read-only disk would refuse and a cleaner of temporary folders remove.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.registry import Collector

PREFIX = "rill_"  # of the figures that can be added up: those of a process's memory and files cannot
# Of these gauges all processes have the same value, or soon will; the others are added up.
SAME = ("rill_models", "rill_model_info", "rill_build_info")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]  # by name and labels
Figures = dict[str, tuple[str, str, Samples]]  # by the metric's name: its type, its description, its samples


def own_figures(registry: CollectorRegistry = REGISTRY) -> str:
    """Return the figures of this process as a line."""
    metrics = [metric for metric in registry.collect() if metric.name.startswith(PREFIX)]
    return f"{json.dumps([_plain(metric) for metric in metrics])}\n"


def _plain(metric: Metric) -> list[Any]:
    samples = [(sample.name, list(sample.labels.items()), sample.value) for sample in metric.samples]
    return [metric.name, metric.type, metric.documentation, samples]


class EngineFigures(Collector):
    """The figures of all processes, by their number. Those of processes that have ended stay, without the gauges."""

    def __init__(self) -> None:
        self._running: dict[int, Figures] = {}
        self._ended: Figures = {}
        self._lock = threading.Lock()

    def update(self, number: int, line: bytes) -> None:
        """Take the line of a process, which replaces its last one."""
        figures = {
            name: (kind, about, {(series, tuple(map(tuple, labels))): value for series, labels, value in samples})
            for name, kind, about, samples in json.loads(line)
        }
        with self._lock:
            self._running[number] = figures

    def end(self, number: int) -> None:
        """Note that a process has ended."""
        with self._lock:
            last = self._running.pop(number, {})
            self._ended = _sum([self._ended, {name: of for name, of in last.items() if of[0] != "gauge"}])

    def collect(self) -> Iterator[Metric]:
        """Yield the sums; called by the thread of the page."""
        with self._lock:
            parts = [self._ended, *self._running.values()]
        for name, (kind, about, samples) in _sum(parts).items():
            metric = Metric(name, about, kind)
            for (series, labels), value in samples.items():
                metric.add_sample(series, dict(labels), value)
            yield metric


def _sum(parts: list[Figures]) -> Figures:
    total: Figures = {}
    for part in parts:
        for name, (kind, about, samples) in part.items():
            _, _, sums = total.setdefault(name, (kind, about, {}))
            for key, value in samples.items():
                sums[key] = max(sums.get(key, value), value) if name in SAME else sums.get(key, 0.0) + value
    return total
