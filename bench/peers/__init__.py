"""Plain servers, as one would write them without Rill, for the same load to measure.

Each runs a loop per stream on one event loop and sends one character a message. They generate with temperature and
seed, and nothing else. `python -m rill.bench.peers.eager --bundle B` serves one until SIGTERM. The first two have
Rill's own API; MLServer, measured where it is installed, has the V2 inference protocol (`rill.bench.peers.v2`).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rill.v1.rill_pb2_grpc import TextGenerationStub

STREAMS = (1, 64)
PEERS = {
    "eager": "grpc.aio + PyTorch eager, random weights",
    "step": "grpc.aio + ORT step + NumPy",
}
MLSERVER = "mlserver"


def installed_peers() -> dict[str, str]:
    """Return the description of each peer that can run here, by name."""
    if find_spec(MLSERVER) is None:
        return PEERS
    return PEERS | {MLSERVER: "MLServer, a streaming runtime + ORT step + NumPy"}


def stub_of(name: str) -> Any:
    """Return the class that makes, from a channel to a peer, an object with the `Generate` of Rill's API."""
    # This module imports MLServer, which may not be installed.
    return import_module("rill.bench.peers.v2").V2Stub if name == MLSERVER else TextGenerationStub
