"""The results of a run as a JSON document. docs/design/benchmarks.md lists its keys."""

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import psutil
import torch

from rill.bench.closed import Load
from rill.bench.floors import Floor
from rill.bench.options import Options
from rill.bench.results import Results
from rill.bench.server import Server
from rill.bundle import Bundle


def document(command: Sequence[str], options: Options, bundle: Bundle, results: Results) -> dict[str, Any]:
    """Make the document. Its keys are always the same; parts that were not run are null or empty.

    Speeds are in characters a second.
    """
    return {
        "command": shlex.join(command),
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
            "torch": torch.__version__,
            "grpcio": grpc.__version__,
            "numpy": np.__version__,
        },
        "bundle": {
            "name": bundle.name,
            "model_id": bundle.model_id,
            "precision": bundle.precision,
            "vocabulary_size": len(bundle.vocabulary),
            "model": dict(bundle.model),
        },
        "settings": {
            "seconds": options.seconds,
            "max_chars": options.max_chars,
            "top_p": options.top_p,
            "objective": asdict(options.objective),
            "device": options.device,
            "round_milliseconds": options.round_milliseconds,
            "engines": options.engines,
            "server_core": results.pinned[0] if results.pinned else None,
            "client_core": results.pinned[1] if results.pinned else None,
        },
        "server": _server(results.server, results.peak_megabytes) if results.server else None,
        "floors": [_floor(floor) for floor in results.floors],
        "loads": [_load(load) for load in results.loads],
        "idle": asdict(results.idle) if results.idle else None,
        "newcomer": asdict(results.newcomer) if results.newcomer else None,
        "open": [asdict(rate) for rate in results.open],
        "peers": [{"name": peer.name, "what": peer.what, **_load(peer.load)} for peer in results.peers],
        "profile": [asdict(profile) for profile in results.profile],
        "notes": results.notes,
    }


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_megabytes": psutil.virtual_memory().total / 1e6,
    }


def _processor() -> str:
    """Return the processor's name where Linux reports it, otherwise its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _server(server: Server, peak_megabytes: float | None) -> dict[str, Any]:
    return {
        "target": server.target,
        "started_here": bool(server.processes),
        "start_seconds": server.start_seconds,
        "rest_megabytes": server.rest_megabytes,
        "peak_megabytes": peak_megabytes,
    }


def _floor(floor: Floor) -> dict[str, Any]:
    return {
        "name": floor.name,
        "batch": floor.batch,
        "characters_per_second": floor.speed,
        "cpu_us_per_character": floor.cpu_us,
        "samples": floor.samples,
    }


def _load(load: Load) -> dict[str, Any]:
    """Make each ratio a key of its own."""
    values = asdict(load)
    ratios: dict[str, float] = values.pop("ratios")
    return values | ratios
