"""What needs an NVIDIA GPU: never run on the machines this was written on."""

import numpy as np
import pytest
from conftest import make_run, run_server

from export.compare import decode_feeds, session
from export.export import build_bundle
from export.sampling import Sampling
from serve.runtime import CUDA, Decoder

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [{}, {"layers": 2, "hidden": 64, "embedding": 8}], ids=str)
def test_states_on_cuda_are_those_of_the_cpu(shape):
    bundle = build_bundle(make_run(**shape), "tiny")
    rng = np.random.default_rng(0)
    batch, time = 5, 40
    decode = session(bundle.graphs["decode"])
    state = rng.uniform(-1, 1, (bundle.layers, batch, bundle.hidden)).astype(np.float32)
    forced = rng.integers(len(bundle.vocabulary), size=(time, batch))
    feeds = decode_feeds(decode, forced[0], state, np.zeros((time, batch), np.float32), Sampling())
    feeds["forced"] = forced
    _, expected = decode.run(None, feeds)
    _, got = Decoder(bundle, CUDA).run(False, feeds)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_text_on_cuda_is_the_same_alone_and_in_company(tiny_folder):
    with run_server(tiny_folder, "--device", "cuda") as running, running.client() as client:
        assert "CUDAExecutionProvider" in running.line
        alone = "".join(client.generate("a", max_chars=500, seed=1))
        others = [client.generate("b", seed=seed) for seed in range(30)]
        for other in others:
            next(other)
        assert "".join(client.generate("a", max_chars=500, seed=1)) == alone
        for other in others:
            other.close()
