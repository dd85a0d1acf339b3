"""The start of the command: --help and wrong usage load no library that is slow to import."""

import subprocess
import sys

import pytest
from servers import ROOT

HEAVY = ["torch", "onnx", "onnxruntime", "numpy", "rich"]
LOADED = """
import sys
from rill.export.command import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print("status", status, [name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("--out out", 2),
        ("a --out out --json nowhere/report.json", 2),
        ("--out out --from-state-dict x.pt --vocabulary v.json --name ../b", 2),
    ],
)
def test_help_and_wrong_usage_load_no_model_library(arguments, status):
    code = LOADED.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"status {status} []"
