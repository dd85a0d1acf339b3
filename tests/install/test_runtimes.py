"""The portable graph in the oldest ONNX Runtime that it is promised for, and in a browser's."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from environments import clean_environment, create
from random_models import make_run

from rill.export.graphs.build import build_bundle
from rill.export.parity.compare import session

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

OLDEST = "1.16.3"
MODELS = {
    "gru": {"cell": "gru"},
    "reset-before": {"cell": "gru", "reset": "before", "layers": 2, "embedding": 5},
    "lstm": {"cell": "lstm", "layers": 2},
    "rnn": {"cell": "rnn", "layers": 3, "residual": True, "embedding": 8},
}
SHAPES = [(3, 7), (0, 3), (1, 0), (0, 0)]  # batch, time
TOLERANCE = 1e-5

IN_PYTHON = """
import json, sys
import numpy, onnxruntime
for name, cases in json.load(open("cases.json")).items():
    graph = onnxruntime.InferenceSession(name + ".onnx", providers=["CPUExecutionProvider"])
    for case in cases:
        feeds = {key: numpy.array(data, "int64" if key == "tokens" else "float32").reshape(shape)
                 for key, (shape, data) in case["feeds"].items()}
        for (shape, data), got in zip(case["outputs"], graph.run(None, feeds)):
            assert list(got.shape) == shape, (name, got.shape, shape)
            assert numpy.allclose(got.ravel(), data, rtol=0, atol=float(sys.argv[1])), name
print(onnxruntime.__version__)
"""
IN_A_BROWSER = """
const ort = require("onnxruntime-web"), fs = require("fs");
ort.env.wasm.numThreads = 1;
(async () => {
  for (const [name, cases] of Object.entries(JSON.parse(fs.readFileSync("cases.json")))) {
    const graph = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(name + ".onnx")));
    for (const {feeds, outputs} of cases) {
      const read = {};
      for (const [key, [shape, data]] of Object.entries(feeds))
        read[key] = key == "tokens" ? new ort.Tensor("int64", BigInt64Array.from(data.map(BigInt)), shape)
                                    : new ort.Tensor("float32", Float32Array.from(data), shape);
      const got = await graph.run(read);
      outputs.forEach(([shape, data], index) => {
        const value = got[graph.outputNames[index]];
        if (String(value.dims) != String(shape)) throw new Error(`${name}: ${value.dims}, not ${shape}`);
        data.forEach((right, at) => {
          if (!(Math.abs(value.data[at] - right) <= Number(process.argv[2]))) throw new Error(`${name}: ${right}`);
        });
      });
    }
  }
  console.log("equal");
})().catch(error => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A folder with graphs, and `cases.json`: inputs and the outputs of this environment's ONNX Runtime."""
    folder, rng, found = tmp_path_factory.mktemp("graphs"), np.random.default_rng(0), {}
    for name, config in MODELS.items():
        for precision in ("fp32", "int8"):
            graph = build_bundle(make_run(**config), "x", precision).graphs["model"]
            (folder / f"{name}-{precision}.onnx").write_bytes(graph)
            runtime, described = session(graph), found.setdefault(f"{name}-{precision}", [])
            for batch, time in SHAPES:
                feeds = {"tokens": rng.integers(57, size=(batch, time))}
                for value in runtime.get_inputs()[1:]:
                    shape = (value.shape[0], batch, value.shape[2])
                    feeds[value.name] = rng.uniform(-1, 1, shape).astype(np.float32)
                outputs = runtime.run(None, feeds)
                described.append(
                    {
                        "feeds": {key: (part.shape, part.ravel().tolist()) for key, part in feeds.items()},
                        "outputs": [(part.shape, part.ravel().tolist()) for part in outputs],
                    }
                )
    (folder / "cases.json").write_text(json.dumps(found))
    return folder


def test_the_oldest_onnx_runtime(cases, tmp_path):
    python = shutil.which("python3.11") if sys.version_info[:2] != (3, 11) else sys.executable
    if not python:
        pytest.skip(f"onnxruntime {OLDEST} needs Python 3.11")
    requirements = [f"onnxruntime=={OLDEST}", "numpy<2"]
    environment = create(tmp_path / "old", requirements, constrained=False, python=python)
    assert environment.run("python", "-c", IN_PYTHON, TOLERANCE, cwd=cases).stdout.strip() == OLDEST


def test_the_runtime_of_browsers(cases, tmp_path):
    """onnxruntime-web, as npm installs it, in Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("no Node.js")
    install = [npm, "install", "--silent", "--ignore-scripts", "--prefix", str(cases), "onnxruntime-web"]
    subprocess.run(install, check=True, cwd=tmp_path)
    (cases / "read.js").write_text(IN_A_BROWSER)
    command = [node, "read.js", str(TOLERANCE)]
    done = subprocess.run(
        command, cwd=cases, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("equal\n")
