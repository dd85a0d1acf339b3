"""The servers behind the gateway, as one request sees them: with its own bearer token and request id."""

from collections import OrderedDict
from itertools import count

from starlette.requests import HTTPConnection

from rill.client.aio import AsyncClient
from rill.gateway.errors import ApiError
from rill.gateway.served_models import ServedModel, ServedModels

MOST_TOKENS = 256  # clients that are kept
LONGEST_TOKEN = 12 * 1024  # characters: a server takes 16 KiB of metadata


class Servers:
    """The connections to the servers, which all requests share, and what is served there."""

    def __init__(self, client: AsyncClient, spread: bool = False) -> None:
        self.client, self._spread = client, spread
        self._turns = count()
        self.models = ServedModels(client.addresses)
        self._by_token: OrderedDict[str, AsyncClient] = OrderedDict()  # least recently used first

    def for_request(self, request: HTTPConnection) -> AsyncClient:
        """Return the client to use for a request: it sends the request's bearer token, if it has one.

        A token that must not travel in plain text is not passed on: no server beyond can ask for it, and OpenAI's
        clients always send one. Raises ApiError for what cannot be a token.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return self.client
        return self.with_token(token.strip())

    def for_call(self, client: AsyncClient, model: ServedModel | None = None) -> AsyncClient:
        """Return a client of the servers that may have `model`, or of all; with --spread, they take turns."""
        addresses = model.addresses if model else tuple(range(client.addresses))
        if self._spread and addresses:
            first = next(self._turns) % len(addresses)
            addresses = addresses[first:] + addresses[:first]
        if model:
            addresses += model.silent
        return client if addresses == tuple(range(client.addresses)) else client.at(*addresses)

    def with_token(self, token: str) -> AsyncClient:
        """Return the client that sends this token."""
        client = self._by_token.pop(token, None)
        if client is None:
            if not all(" " < character <= "~" for character in token):
                raise ApiError(401, "the bearer token must be printable ASCII without spaces", code="invalid_api_key")
            if len(token) > LONGEST_TOKEN:
                message = f"the bearer token has more than {LONGEST_TOKEN} characters"
                raise ApiError(401, message, code="invalid_api_key")
            try:
                client = self.client.with_token(token)
            except ValueError:
                return self.client
        self._by_token[token] = client
        if len(self._by_token) > MOST_TOKENS:
            self._by_token.popitem(last=False)
        return client
