"""What needs an NVIDIA GPU: never run on the machines this was written on."""

import numpy as np
import onnxruntime as ort
import pytest
from random_models import make_run
from servers import run_server

from rill.bench.placement import placement_of
from rill.export.graphs.build import build_bundle
from rill.export.parity.compare import decode_feeds, session
from rill.sampling import Sampling
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CUDA

pytestmark = pytest.mark.gpu
LARGE = tuple(chr(0x4E00 + index) for index in range(300))


@pytest.mark.parametrize(
    "shape",
    [{}, {"layers": 2, "hidden": 64, "embedding": 8}, {"cell": "lstm"}, {"cell": "rnn"}, {"reset": "before"}],
    ids=str,
)
def test_states_on_cuda_are_those_of_the_cpu(shape):
    bundle = build_bundle(make_run(**shape), "tiny")
    rng = np.random.default_rng(0)
    batch, time = 8, 40
    decode = session(bundle.graphs["decode"])
    states = {
        name: rng.uniform(-1, 1, (bundle.layers, batch, bundle.hidden)).astype(np.float32) for name, _ in bundle.states
    }
    forced = rng.integers(len(bundle.vocabulary), size=(time, batch))
    feeds = decode_feeds(decode, forced[0], states, np.zeros((time, batch), np.float32), Sampling())
    feeds["forced"] = forced
    expected = decode.run([f"next_{name}" for name in states], feeds)
    on_device = {name: ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0) for name, values in states.items()}
    rest = {name: values for name, values in feeds.items() if name not in states}
    _, got = Decoder(bundle, CUDA).run("decode", rest, on_device)
    for value, right in zip(got.values(), expected, strict=True):
        np.testing.assert_allclose(value.numpy(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [{}, {"cell": "lstm", "layers": 2}, {"symbols": LARGE}], ids=["gru", "lstm", "large"])
def test_every_node_of_every_graph_is_on_cuda(shape):
    bundle = build_bundle(make_run(**shape), "tiny")
    for key, graph in {**bundle.graphs, **bundle.constrained}.items():
        if key != "model":
            nodes, copies = placement_of(graph, CUDA, 0)
            assert (set(nodes), copies) == ({CUDA}, 0), key


def test_a_text_on_cuda_is_the_same_alone_and_in_company(tiny_folder):
    with run_server(tiny_folder, "--device", "cuda") as running, running.client() as client:
        assert "CUDAExecutionProvider" in running.line
        alone = "".join(client.generate("a", max_chars=500, seed=1))
        others = [client.generate("b", max_chars=0, seed=seed) for seed in range(30)]
        for other in others:
            next(other)
        assert "".join(client.generate("a", max_chars=500, seed=1)) == alone
        for other in others:
            other.close()
