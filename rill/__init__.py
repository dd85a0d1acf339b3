"""Rill: small recurrent character models, served as endless streams of text.

    from rill import Client

    with Client("127.0.0.1:50051") as client:
        for piece in client.generate("ROMEO:", max_chars=400, temperature=0.7, seed=7):
            print(piece, end="", flush=True)

The names of the client library are loaded on first use (PEP 562), so that `rill.train` does not need gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rill.client.aio import AsyncClient, AsyncSession
    from rill.client.errors import RillError, ServerError, SessionStateError
    from rill.client.lines import LineScore
    from rill.client.requests import finish_reason, generate_request
    from rill.client.security import Security
    from rill.client.streams import (
        AsyncLineScores,
        AsyncMessageStream,
        AsyncTextStream,
        LineScores,
        MessageStream,
        TextStream,
    )
    from rill.client.sync import Client, Session

    __version__: str

__all__ = [
    "AsyncClient",
    "AsyncLineScores",
    "AsyncMessageStream",
    "AsyncSession",
    "AsyncTextStream",
    "Client",
    "LineScore",
    "LineScores",
    "MessageStream",
    "RillError",
    "Security",
    "ServerError",
    "Session",
    "SessionStateError",
    "TextStream",
    "finish_reason",
    "generate_request",
]

_MODULES = {
    "AsyncClient": "aio",
    "AsyncLineScores": "streams",
    "AsyncMessageStream": "streams",
    "AsyncSession": "aio",
    "AsyncTextStream": "streams",
    "Client": "sync",
    "LineScore": "lines",
    "LineScores": "streams",
    "MessageStream": "streams",
    "RillError": "errors",
    "Security": "security",
    "ServerError": "errors",
    "Session": "sync",
    "SessionStateError": "errors",
    "TextStream": "streams",
    "finish_reason": "requests",
    "generate_request": "requests",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("rill.programs").version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"rill.client.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
