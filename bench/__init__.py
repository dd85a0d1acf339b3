"""Latency and throughput benchmarks, side by side in one run."""


class BenchError(Exception):
    """The benchmark cannot be run as asked; the message is one line that says why."""
