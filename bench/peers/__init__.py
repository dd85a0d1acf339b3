"""What one would write without Rill: plain servers that speak the same API, so that the same load can measure them.

Each runs a loop per stream on one event loop and sends one character a message. They generate with temperature and
seed, and nothing else. `python -m bench.peers.eager --bundle B` serves one until it is told to end.
"""

from importlib.util import find_spec

STREAMS = (1, 64)
PEERS = {
    "eager": "grpc.aio + PyTorch eager, random weights",
    "step": "grpc.aio + ORT step + NumPy",
}


def mlserver_note() -> str:
    """Why MLServer is not among the peers."""
    if find_spec("mlserver") is None:
        return "MLServer is not installed: not measured"
    return "MLServer is installed, but this benchmark cannot drive it yet: not measured"
