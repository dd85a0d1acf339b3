"""The gauges of models and streams, updated once a second: no stream waits for them."""

import asyncio
import platform
from collections import defaultdict
from importlib import metadata

import grpc
import onnxruntime
from prometheus_client import Gauge

from rill.programs import DISTRIBUTION
from rill.serve.models.catalog import Catalog
from rill.serve.observe.metrics import (
    BUILD_INFO,
    MAX_STREAMS,
    MODEL_INFO,
    MODELS,
    STREAMS_PARKED,
    STREAMS_RUNNING,
    STREAMS_WAITING,
)

SECONDS = 1.0

Series = tuple[Gauge, tuple[str, ...]]  # with the values of its labels


async def keep_current(models: Catalog) -> None:
    """Update the gauges until cancelled."""
    BUILD_INFO.labels(_version(), onnxruntime.__version__, grpc.__version__, platform.python_version()).set(1)
    shown: set[Series] = set()
    while True:
        values = _values(models)
        for gauge, labels in shown - values.keys():
            gauge.remove(*labels)
        for (gauge, labels), value in values.items():
            gauge.labels(*labels).set(value)
        MODELS.set(len(models.served))
        shown = set(values)
        await asyncio.sleep(SECONDS)


def _values(models: Catalog) -> dict[Series, float]:
    """Return the value of each series; a model that is being replaced and its successor share theirs."""
    values: defaultdict[Series, float] = defaultdict(float)
    for model in models.all:
        name = (model.bundle.name,)
        values[STREAMS_RUNNING, name] += model.slots.running
        values[STREAMS_WAITING, name] += model.slots.waiting
        values[STREAMS_PARKED, name] += model.parked
    for model in models.served:
        bundle = model.bundle
        values[MAX_STREAMS, (bundle.name,)] = model.slots.capacity
        values[MODEL_INFO, (bundle.name, bundle.model_id, bundle.precision, model.provider, model.numerics)] = 1
    return values


def _version() -> str:
    """Return Rill's version; empty where it is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""
