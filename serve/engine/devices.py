"""The devices that ONNX Runtime can use: which one to choose, how to ask for it, and what its numerics are."""

import ctypes
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort

from rill.onnx_runtime import conflict
from rill.serve.errors import StartError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

log = logging.getLogger("rill")


def choose_device(device: str) -> tuple[str, int]:
    """The execution provider and device id for `auto`, `cpu`, `cuda` or `cuda:N`. Raises StartError if there is none.

    It asks the driver for GPUs, because ONNX Runtime prints errors when asked for a GPU that does not exist.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdecimal())):
        raise StartError(f"--device {device!r} is not auto, cpu, cuda or cuda:N")
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
    """The number of NVIDIA GPUs that the driver reports; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def warn_about_two_runtimes() -> None:
    """Log a warning if several distributions of ONNX Runtime are installed."""
    if several := conflict():
        log.warning("%s", several)


def numerics(provider: str) -> str:
    """What the bits of a text depend on besides the bundle and the request: where this is equal, texts are equal."""
    kind = "cuda" if provider == CUDA else f"cpu-{platform.machine().lower()}-{_instruction_set()}"
    return f"onnxruntime-{ort.__version__}-{kind}"


def _instruction_set() -> str:
    """The widest vector instructions, by which ONNX Runtime chooses its kernels; else the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        words = set(info.read_text(errors="replace").split())
        for name in ("avx512f", "avx2", "avx", "sve", "asimd"):
            if name in words:
                return name
    return (platform.processor() or os.name).replace(" ", "_").lower()


def providers_of(provider: str, device_id: int, memory: int) -> list[Any]:
    """The `providers` of a session; `memory` is in bytes, 0 for all. A GPU does not compute float32 as TF32."""
    if provider == CPU:
        return [CPU]
    limits = {"gpu_mem_limit": memory} if memory else {}
    return [(provider, {"device_id": device_id, "use_tf32": 0, **limits})]
