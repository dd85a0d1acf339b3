"""Which model a request is for. A model can be replaced at any moment, and its namesake has other symbols."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from rill.client.aio import AsyncClient
from rill.gateway.errors import ApiError
from rill.gateway.served_models import RECENT_SECONDS, ServedModel
from rill.gateway.servers import Servers

ATTEMPTS = 3  # where a model is replaced at that moment

First = TypeVar("First")


async def model_for(servers: Servers, client: AsyncClient, name: str, resume_token: bytes) -> ServedModel:
    """Return the model of this name, else that of the token, else the default, as it was listed last.

    Raises ApiError if there is no such model, and ServerError.
    """
    listing = await servers.models.latest(client)
    if not name and resume_token and len(listing.models) > 1:
        # Only a server can open the token.
        async with client.interact(resume_token=resume_token) as session:
            model_id = session.model_id
        found = listing.by_id(model_id) or (await servers.models.fresh(client)).by_id(model_id)
        if found:
            return found
    if name not in listing.models:
        listing = await servers.models.fresh(client)
    return listing.find(name)


async def begun_with(
    model: ServedModel, servers: Servers, client: AsyncClient, first: Coroutine[None, None, First], reads_ids: bool
) -> tuple[First, bool]:
    """Wait for the first message of a call; tell whether the call found `model` there, and not a namesake.

    A listing that is asked for after the call was made says so, without a delay. Where no ids of symbols depend on it,
    one of a moment ago is enough: many calls then need not ask for one each. Raises ServerError and ApiError.
    """
    if not reads_ids and (recent := servers.models.recent()):
        return await first, recent.models.get(model.name) == model
    beginning = asyncio.create_task(first)
    try:
        listing = await servers.models.fresh(client, 0.0 if reads_ids else RECENT_SECONDS)
        return await beginning, listing.models.get(model.name) == model
    finally:
        if not beginning.done():
            beginning.cancel()
            await asyncio.wait([beginning])
        if not beginning.cancelled():
            beginning.exception()  # it was raised, or another one was


def replaced_error(name: str) -> ApiError:
    """Return the error of a request whose model changed each time it was looked at."""
    return ApiError(503, f"model {name!r} is being replaced; try again", headers={"retry-after": "1"})
