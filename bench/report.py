"""What a run of the benchmark found: as JSON, and as a table for the screen."""

import os
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
import psutil
import torch
from rich.table import Table

from bench.floors import Floor
from bench.load import Load, Percentiles
from bench.server import Server
from export.bundle import Bundle

Format = Callable[[float], str]


def document(
    command: Sequence[str], bundle: Bundle, server: Server, floors: Sequence[Floor], loads: Sequence[Load]
) -> dict[str, Any]:
    """Everything, ready for JSON: speeds in characters a second, other units in the names."""
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
        "server": {
            "target": server.target,
            "started_here": server.process is not None,
            "start_seconds": server.start_seconds,
            "rest_megabytes": server.rest_megabytes,
        },
        "floors": [
            {"name": floor.name, "batch": floor.batch, "characters_per_second": floor.speed, "samples": floor.samples}
            for floor in floors
        ],
        "loads": [asdict(load) | _ratios(load, floors) for load in loads],
    }


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_megabytes": psutil.virtual_memory().total / 1e6,
    }


def _processor() -> str:
    """Its name, where Linux tells it; else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _ratios(load: Load, floors: Sequence[Floor]) -> dict[str, float]:
    """How fast a load went relative to the floors at the same batch size: the median over its windows."""
    return {
        f"ratio_to_{floor.name}": median(
            speed / mean(around) for speed, around in zip(load.windows, pairwise(floor.samples), strict=True)
        )
        for floor in floors
        if floor.batch == load.streams
    }


def table(server: Server, floors: Sequence[Floor], loads: Sequence[Load]) -> Table:
    """A column for each number of streams."""
    made = Table(title="streams, or rows of a batch", caption=_about(server))
    made.add_column("")
    for load in loads:
        made.add_column(f"{load.streams:,}", justify="right")

    def row(label: str, values: Sequence[float | Percentiles | None], form: Format) -> None:
        made.add_row(label, *(_cell(value, form) for value in values))

    ratios = [_ratios(load, floors) for load in loads]
    whole, tenths, hundredths = "{:,.0f}".format, "{:,.1f}".format, "{:,.2f}".format
    made.add_row("[bold]in process, median")
    row("decode graph, characters/s", [floor.speed for floor in floors if floor.name == "decode"], whole)
    row("PyTorch eager, characters/s", [floor.speed for floor in floors if floor.name == "eager"], whole)
    made.add_section()
    made.add_row("[bold]over gRPC")
    row("characters/s", [load.characters_per_second for load in loads], whole)
    row("÷ decode graph", [ratio["ratio_to_decode"] for ratio in ratios], hundredths)
    row("÷ PyTorch eager", [ratio["ratio_to_eager"] for ratio in ratios], hundredths)
    row("messages/s", [load.messages_per_second for load in loads], whole)
    row("characters a message", [load.characters_per_message for load in loads], tenths)
    row("first character p50 / p99, ms", [load.first_character_ms for load in loads], tenths)
    row("inter-character p50 / p99, µs", [load.inter_character_us for load in loads], whole)
    row("server CPU, µs a character", [load.server_cpu_us_per_character for load in loads], tenths)
    row("server memory, MB", [load.server_megabytes for load in loads], whole)
    row("cores busy with other programs", [load.other_cores for load in loads], tenths)
    return made


def _cell(value: float | Percentiles | None, form: Format) -> str:
    if isinstance(value, Percentiles):
        return f"{_cell(value.p50, form)} / {_cell(value.p99, form)}"
    return "-" if value is None else form(value)


def _about(server: Server) -> str:
    if server.start_seconds is None or server.rest_megabytes is None:
        return f"server at {server.target}; the floors are this machine's"
    return f"server listening after {server.start_seconds:.2f} s, with {server.rest_megabytes:.0f} MB"
