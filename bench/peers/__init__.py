"""What one would write without Rill: plain servers, so that the same load can measure them.

Each runs a loop per stream on one event loop and sends one character a message. They generate with temperature and
seed, and nothing else. `python -m rill.bench.peers.eager --bundle B` serves one until it is told to end. The first two
speak Rill's own API; MLServer, measured where it is installed, speaks the V2 inference protocol
(`rill.bench.peers.v2`).
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
    """What each of them is, by name."""
    if find_spec(MLSERVER) is None:
        return PEERS
    return PEERS | {MLSERVER: "MLServer, a streaming runtime + ORT step + NumPy"}


def stub_of(name: str) -> Any:
    """What makes, of a channel to a peer, something that has the `Generate` of Rill's own API."""
    # Only where it is installed can what needs MLServer be imported.
    return import_module("rill.bench.peers.v2").V2Stub if name == MLSERVER else TextGenerationStub
