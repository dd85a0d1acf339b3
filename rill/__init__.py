"""Rill: small recurrent character models, served as endless streams of text.

    from rill import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.generate("ROMEO:", max_chars=400, temperature=0.7, seed=7):
            print(piece, end="", flush=True)

The names of the client library are loaded on first use (PEP 562), so that `rill.train` needs no gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rill.client.failover import ServerError as ServerError
    from rill.client.security import Security as Security
    from rill.client.sync import AsyncClient as AsyncClient
    from rill.client.sync import Client as Client

_HOMES = {
    "AsyncClient": "rill.client.sync",
    "Client": "rill.client.sync",
    "Security": "rill.client.security",
    "ServerError": "rill.client.failover",
}

__all__ = ["AsyncClient", "Client", "Security", "ServerError"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
