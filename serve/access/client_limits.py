"""Limits on the streams that one client may have at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rill.serve.access.bearer_tokens import BearerTokens, Metadata
from rill.serve.errors import ClientLimitError


class Caller(Protocol):
    """The part of a call's gRPC context that identifies the client."""

    def peer(self) -> str:
        """Return the client's address."""

    def invocation_metadata(self) -> Metadata | None:
        """Return the call's metadata."""


class ClientLimits:
    """Admits up to `limit` calls of each client at once, with 0 any number; used on the event loop only.

    A client is the holder of one of `tokens`; without tokens, an address.
    """

    def __init__(self, limit: int = 0, tokens: BearerTokens | None = None) -> None:
        self._limit, self._tokens = limit, tokens
        self._calls: Counter[bytes | str] = Counter()

    def admit(self, caller: Caller) -> AbstractContextManager[None]:
        """Count a call until the context is left. Entering raises ClientLimitError."""
        return self._admit(caller) if self._limit else nullcontext()

    @contextmanager
    def _admit(self, caller: Caller) -> Iterator[None]:
        client = self.client(caller)
        if self._calls[client] >= self._limit:
            raise ClientLimitError(
                f"this client already has {self._limit} streams, the most it may have at once; try again later"
            )
        self._calls[client] += 1
        try:
            yield
        finally:
            self._calls[client] -= 1
            if not self._calls[client]:
                del self._calls[client]  # otherwise it would grow with each new address

    def client(self, caller: Caller) -> bytes | str:
        """Return whose call it is."""
        holder = self._tokens.holder(caller.invocation_metadata() or ()) if self._tokens else None
        return holder or caller.peer().rpartition(":")[0]  # without the port
