"""`POST /v1/completions`: texts in OpenAI's form, whole or as server-sent events."""

from starlette.requests import Request
from starlette.responses import Response

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.gateway.api.choices import Job
from rill.gateway.api.disconnects import Disconnect
from rill.gateway.api.event_stream import EventStream
from rill.gateway.api.fields import fields_of
from rill.gateway.api.parameters import Completion, completion_of
from rill.gateway.api.texts import Texts, draining_error
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError
from rill.gateway.served_models import ServedModel
from rill.gateway.servers import Servers, request_id_of

ATTEMPTS = 3  # where a model is replaced at that moment


async def completions(request: Request) -> Response | EventStream:
    """Answer with the texts that are requested. Raises ApiError and ServerError before the first event."""
    completion = completion_of(await fields_of(request))
    with Disconnect(request.receive):
        texts = await _begun(request, completion)
        if completion.stream:
            return EventStream(texts)
        try:
            return Response(await texts.body(), media_type="application/json")
        finally:
            await texts.aclose()
    return Response(status_code=499)


async def _begun(request: Request, completion: Completion) -> Texts:
    """Return the texts once the first has begun, of the model that was served then."""
    servers: Servers = request.app.state.servers
    drain: Drain = request.app.state.drain
    client, request_id = servers.for_request(request), request_id_of(request)
    reads_once = True
    for attempt in range(ATTEMPTS):
        if drain.has_begun:
            break
        model = await _model(servers, client, completion)
        texts = Texts(Job(completion, model, client, request_id, drain, reads_once))
        try:
            if await texts.begin(servers.models.fresh(client)):
                return texts
        except ServerError as error:
            # A token that this request made, and not one that it was given: the servers know different keys or models.
            if completion.resume_token or not error.reason.startswith("RESUME_TOKEN_") or attempt + 1 == ATTEMPTS:
                raise
            reads_once = False
    if drain.has_begun:
        raise draining_error()
    raise ApiError(503, f"model {model.name!r} is being replaced; try again", headers={"retry-after": "1"})


async def _model(servers: Servers, client: AsyncClient, completion: Completion) -> ServedModel:
    """Return the model that the request is for, as it was listed last. Raises ApiError if there is no such."""
    listing = await servers.models.latest(client)
    if not completion.model and completion.resume_token and len(listing.models) > 1:
        # The model is that of the token, which only a server can open.
        async with client.interact(resume_token=completion.resume_token) as session:
            found = listing.by_id(session.model_id) or (await servers.models.fresh(client)).by_id(session.model_id)
        if found:
            return found
    if completion.model not in listing.models:
        listing = await servers.models.fresh(client)
    return listing.find(completion.model)
