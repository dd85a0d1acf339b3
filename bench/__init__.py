"""Latency and throughput benchmarks, side by side in one run."""
