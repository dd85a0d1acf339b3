"""Who may import whom, seen in running processes; and that generated files are current."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("serve.__main__", ["torch", "onnx", "safetensors", "rich", "matplotlib", "train.model", "export.decode"]),
        ("serve.client", ["torch", "onnx", "onnxruntime", "numpy", "train", "export", "rich", "prompt_toolkit"]),
        ("serve.command", ["torch", "onnx", "onnxruntime", "numpy", "train", "export", "rich", "prompt_toolkit"]),
        ("export.bundle", ["torch", "onnx", "onnxruntime"]),
        ("export.sampling", ["torch", "onnx", "onnxruntime"]),
        ("train.vocab", ["torch", "numpy"]),
        ("train.numpy_gru", ["torch"]),
        ("train.report", ["torch", "matplotlib"]),
        ("train.__main__", ["export", "serve", "protos", "bench", "onnx", "onnxruntime", "grpc"]),
    ],
)
def test_what_a_module_loads(module, forbidden):
    program = f"import sys, {module}; print(*sorted(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_serving_process_loads_neither_torch_nor_onnx(tiny_folder):
    """Imports inside functions too: after a text has been served."""
    program = f"""
import asyncio, sys
from serve.client import AsyncClient
from serve.request import Limits
from serve.server import Models, Settings, TextGeneration, Tokens, _listening, _maker, keys_of

async def main():
    settings = Settings([{str(tiny_folder)!r}], port=0)
    models = Models(settings.bundles, _maker(settings, print))
    await models.start()
    service = TextGeneration(models, Tokens(keys_of(settings), settings.resume_ttl), Limits())
    async with _listening(service, models, settings) as (port, _), AsyncClient(f"127.0.0.1:{{port}}") as client:
        text = "".join([piece async for piece in client.generate("a", max_chars=50, top_k=3)])
    await models.close()
    print(len(text), *{{"torch", "onnx"}} & set(sys.modules))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["50"], done.stderr


def test_stubs_are_current(tmp_path):
    command = ["-m", "grpc_tools.protoc", "-I.", "protos/rill.proto"]
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([sys.executable, *command, *outputs], cwd=ROOT, check=True)
    for made in (tmp_path / "protos").iterdir():
        assert made.read_bytes() == (ROOT / "protos" / made.name).read_bytes(), (
            f"make protos: {made.name} is not current"
        )
