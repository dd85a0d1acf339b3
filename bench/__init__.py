"""Latency and throughput benchmarks, side by side in one run."""

import os

# ONNX Runtime's official builds report their use to Microsoft, unless this is set before the first import of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class BenchError(Exception):
    """The benchmark cannot be run as asked; the message is one line that says why."""
