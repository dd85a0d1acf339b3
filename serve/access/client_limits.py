"""Who is calling, and how many streams each may have at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rill.serve.access.bearer_tokens import BearerTokens
from rill.serve.api.statuses import Context
from rill.serve.errors import ClientLimitError
from rill.serve.models.slots import RETRY_SECONDS


class ClientLimits:
    """Gives each client up to `most` places, with 0 any number; used on the event loop only.

    A client is the holder of one of `tokens`; where there are none, an address.
    """

    def __init__(self, most: int = 0, tokens: BearerTokens | None = None) -> None:
        self._most, self._tokens = most, tokens
        self._places: Counter[bytes | str] = Counter()

    def place(self, context: Context) -> AbstractContextManager[None]:
        """A place for a call, until it ends in any way. Entering raises ClientLimitError."""
        return self._place(context) if self._most else nullcontext()

    @contextmanager
    def _place(self, context: Context) -> Iterator[None]:
        client = self._client(context)
        if self._places[client] >= self._most:
            raise ClientLimitError(
                f"this client has {self._most} streams already, as many as it may have at once; try again later",
                RETRY_SECONDS,
            )
        self._places[client] += 1
        try:
            yield
        finally:
            self._places[client] -= 1
            if not self._places[client]:
                del self._places[client]  # or it would grow with every address there is

    def _client(self, context: Context) -> bytes | str:
        holder = self._tokens.holder(context.invocation_metadata() or ()) if self._tokens else None
        return holder or context.peer().rpartition(":")[0]  # without the port
