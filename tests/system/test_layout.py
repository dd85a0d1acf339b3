"""Which modules a running process loads, and under which names. Static import rules are in pyproject.toml."""

import os
import subprocess
import sys

import pytest
from servers import ROOT

PARTS = ("train", "export", "serve", "bench", "gateway")
# Print modules of Rill under other names: a file loaded as `serve.x` and as `rill.serve.x` would exist twice.
FOLDERS = tuple(f"{ROOT}{os.sep}{folder}{os.sep}" for folder in ("rill", *PARTS))
MISNAMED = (
    "print(*(name for name, module in sys.modules.items() if not name.startswith('rill') and name != '__main__' "
    f"and str(getattr(module, '__file__', '')).startswith({FOLDERS!r})))"
)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (
            "rill.serve.operate.server",
            ["torch", "onnx", "safetensors", "rich", "matplotlib", "rill.train", "rill.export"],
        ),
        *(
            (name, ["torch", "onnx", "onnxruntime", "numpy", "rill.train", "rill.export", "rich", "prompt_toolkit"])
            for name in ("rill.client.sync", "rill.client.aio", "rill.cli.main")
        ),
        (
            "rill.gateway.server",
            ["torch", "onnx", "onnxruntime", "numpy", "rill.serve", "rill.cli", "rich", "prompt_toolkit"],
        ),
        ("rill.bundle", ["torch", "onnx", "onnxruntime"]),
        ("rill.sampling", ["torch", "onnx", "onnxruntime"]),
        ("rill.vocabulary", ["torch", "numpy"]),
        ("rill.train.nets.numpy_gru", ["torch"]),
        ("rill.train.report", ["torch", "numpy", "matplotlib"]),
        ("rill.train.command", ["torch", "numpy", "rich"]),
        (
            "rill.train.loop.train",
            ["rill.export", "rill.serve", "rill.v1", "rill.bench", "onnx", "onnxruntime", "grpc"],
        ),
    ],
)
def test_what_a_module_loads(module, forbidden):
    program = f"import sys, {module}; print(*sorted(set({forbidden!r}) & set(sys.modules))); {MISNAMED}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_serving_process_loads_neither_torch_nor_onnx(tiny_folder):
    """Imports inside functions too: after a text has been served."""
    program = f"""
import asyncio, sys
from rill.client.aio import AsyncClient
from rill.serve.config import ServerConfig
from rill.serve.operate.server import Catalog, ResumeTokens, TextGeneration, listening, load_keys, model_maker

async def main():
    config = ServerConfig([{str(tiny_folder)!r}], port=0)
    models = Catalog(config.bundles, model_maker(config, print))
    await models.start()
    service = TextGeneration(models, ResumeTokens(load_keys(config), config.resume_ttl), config)
    async with listening(service, models, config) as (target, *_), AsyncClient(target) as client:
        text = "".join([piece async for piece in client.generate("a", max_chars=50, top_k=3)])
    await models.close()
    print(len(text), *{{"torch", "onnx"}} & set(sys.modules))
    {MISNAMED}

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


@pytest.mark.parametrize("part", PARTS)
def test_the_parts_in_rill_are_links(part):
    link = ROOT / "rill" / part
    assert link.is_symlink()
    assert os.readlink(link) == f"../{part}"
