"""ONNX Runtime: which device, which session, and what a text's bits depend on."""

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.bundle import Bundle
from serve.errors import StartError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

log = logging.getLogger("rill")


class Decoder:
    """The serving graphs of one bundle, loaded on one device.

    Raises StartError if the bundle cannot be served there.
    """

    def __init__(self, bundle: Bundle, provider: str, device_id: int = 0, threads: int = 1) -> None:
        if bundle.labels:
            raise StartError(
                f"bundle {bundle.name!r} is a tagger: it labels symbols, has no decode graph and cannot stream text"
            )
        if provider == CUDA and bundle.precision != "fp32":
            raise StartError(
                f"bundle {bundle.name!r} is {bundle.precision}, which runs on the CPU only: use --device cpu"
            )
        self.provider = provider
        self._sessions = {}
        for filters, key in [(False, "decode"), (True, "decode_filters")]:
            if key not in bundle.graphs:
                raise StartError(f"bundle {bundle.name!r} has no graph {key!r}: export it again")
            self._sessions[filters] = _session(bundle.graphs[key], provider, device_id, threads, bundle.name)

    def run(self, filters: bool, feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """One call of a serving graph (`export.decode` lists the inputs): tokens [time, batch], next state."""
        tokens, state = self._sessions[filters].run(["tokens", "next_state_h"], feeds)
        return tokens, state


def _session(graph: bytes, provider: str, device_id: int, threads: int, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns are kept for every combination of shapes ever seen, and rounds have thousands of them.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    providers: list[Any] = [provider]
    if provider == CUDA:
        providers = [(CUDA, {"device_id": device_id, "use_tf32": 0}), CPU]
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
        raise StartError(f"bundle {name!r} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from None
    if session.get_providers()[0] != provider:
        raise StartError(f"ONNX Runtime did not give bundle {name!r} the {provider}; see its messages above")
    return session


def choose_device(device: str) -> tuple[str, int]:
    """The execution provider and device id for `auto`, `cpu`, `cuda` or `cuda:N`. Raises StartError if it is not here.

    Looks for a GPU itself, because asking ONNX Runtime for one that is not there prints errors.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdecimal())):
        raise StartError(f"--device {device!r} is none of auto, cpu, cuda and cuda:N")
    if kind == "cpu":
        return CPU, 0
    count = gpu_count()
    built = CUDA in ort.get_available_providers()
    if kind == "auto" and not (count and built):
        return CPU, 0
    if not built:
        raise StartError("--device cuda: this ONNX Runtime is built without CUDA; install onnxruntime-gpu alone")
    if count <= int(index or 0):
        raise StartError(
            f"--device {device}: {count or 'no'} NVIDIA GPU found on this machine; use --device cpu or auto"
        )
    ort.preload_dlls()
    return CUDA, int(index or 0)


def gpu_count() -> int:
    """NVIDIA GPUs that the driver shows; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def warn_of_two_runtimes() -> None:
    """Say so if both distributions of ONNX Runtime are installed: they overwrite each other's files."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(installed) > 1:
        both = " and ".join(installed)
        log.warning("%s are both installed and overwrite each other: uninstall both, then install one", both)


def numerics(provider: str) -> str:
    """What the bits of a text depend on beside the bundle and the request: equal strings, equal texts."""
    kind = "cuda" if provider == CUDA else f"cpu-{platform.machine().lower()}-{_instruction_set()}"
    return f"onnxruntime-{ort.__version__}-{kind}"


def _instruction_set() -> str:
    """The widest vector instructions, by which ONNX Runtime chooses its kernels; else the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        words = set(info.read_text(errors="replace").split())
        for name in ("avx512f", "avx2", "avx", "sve", "asimd"):
            if name in words:
                return name
    return (platform.processor() or os.name).replace(" ", "_").lower()
