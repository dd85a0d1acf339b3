"""Whether requests can be answered now: asked by probes, often, and so remembered for a moment."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Self

import grpc

from rill.addresses import split_addresses
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.security import Security

REMEMBERED_SECONDS = 1.0
ANSWER_SECONDS = 1.0  # within which a server answers


class Readiness:
    """Asks each server of `target` whether it takes calls, over a connection of its own."""

    def __init__(self, target: str, security: Security) -> None:
        self._clients = [
            AsyncClient(address, begin_seconds=0.0, security=security) for address in split_addresses(target)
        ]
        self._lock, self._until, self._obstacle = asyncio.Lock(), 0.0, ""

    async def obstacle(self) -> str:
        """Return why no server takes calls; empty if one does."""
        async with self._lock:
            if time.monotonic() >= self._until:
                obstacles = await asyncio.gather(*map(_obstacle, self._clients))
                self._obstacle = "" if "" in obstacles else "; ".join(dict.fromkeys(obstacles))
                self._until = time.monotonic() + REMEMBERED_SECONDS
            return self._obstacle

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def _obstacle(client: AsyncClient) -> str:
    """Return why a server takes no calls; empty if it does.

    A server that asks for a bearer token takes the calls of those that have one.
    """
    try:
        served = await client.models(timeout=ANSWER_SECONDS)
    except ServerError as error:
        return "" if error.code is grpc.StatusCode.UNAUTHENTICATED else str(error)
    if served.draining:
        return "the server is shutting down"
    return "" if served.models else "the server has no model"
