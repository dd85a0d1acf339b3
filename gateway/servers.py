"""The servers behind the gateway, as one request sees them: with its own bearer token and request id."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from rill.client.aio import AsyncClient
from rill.gateway.errors import ApiError

REQUEST_ID = "x-request-id"


@dataclass(frozen=True)
class Servers:
    """The connections to the servers, which all requests share."""

    client: AsyncClient

    def for_request(self, request: HTTPConnection) -> AsyncClient:
        """Return the client to use for a request: it sends the request's bearer token, if it has one.

        Raises ApiError for a token that cannot be passed on.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return self.client
        try:
            return self.client.with_token(token.strip())
        except ValueError as error:
            raise ApiError(401, str(error), code="invalid_api_key") from None
