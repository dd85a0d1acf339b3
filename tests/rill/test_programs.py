"""Programs whose packages are missing, or half there."""

import os
import subprocess
import sys

import pytest
from servers import ROOT

from rill import onnx_runtime

MAIN = "from rill.cli.main import main; sys.exit(main())"
# Python finds a folder of the name, without a module in it.
HALF = """
import sys, importlib.util as util
from importlib.machinery import ModuleSpec
find = util.find_spec
util.find_spec = lambda name, *rest: ModuleSpec(name, None) if name == "onnxruntime" else find(name, *rest)
"""


def run(program, folder, *arguments):
    """Run `rill ARGUMENTS` in a folder, after a program."""
    command = [sys.executable, "-W", "error", "-c", program + MAIN, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["serve"], ["serve", "--engines", "2"], ["export"], ["bench", "--bundle"]])
def test_half_of_onnx_runtime_is_one_sentence(arguments, tmp_path, tiny_folder):
    """What is left of two distributions when one of them was removed: the other's files without a module."""
    name, version = next(iter(onnx_runtime.find_distributions().items()))
    done = run(HALF, tmp_path, *arguments, tiny_folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: rill {arguments[0]} needs ONNX Runtime, and its module 'onnxruntime' is incomplete: install it again:"
        f" pip install --force-reinstall --no-deps {name}=={version}\n"
    )


@pytest.mark.parametrize(
    ("module", "code", "message"),
    [
        ("onnxruntime", "raise ImportError('libm.so.6: version GLIBC_9\\nnot found')", "install --force-reinstall"),
        (
            "grpc",
            "raise ImportError('undefined symbol')",
            "pip uninstall --yes grpcio, then pip install 'rill-text[serve]'",
        ),
        ("prometheus_client", "import nothing_of_this_name", "pip install 'rill-text[serve]'"),
    ],
)
def test_a_broken_package_is_one_sentence(module, code, message, tmp_path, tiny_folder):
    (tmp_path / f"{module}.py").write_text(code)
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); ", tmp_path, "serve", tiny_folder)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: rill serve ")
    assert message in line


def test_two_distributions_are_named(monkeypatch):
    versions = {"onnxruntime": "1.2", "onnxruntime-gpu": "1.3"}
    monkeypatch.setattr(onnx_runtime, "find_distributions", lambda: versions)
    assert onnx_runtime.conflict() == (
        "onnxruntime 1.2 and onnxruntime-gpu 1.3 are both installed and overwrite each other's files; "
        "keep one of them: pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime==1.2"
    )
