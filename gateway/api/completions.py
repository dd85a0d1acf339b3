"""`POST /v1/completions`: texts in OpenAI's form, whole or as server-sent events."""

from starlette.requests import Request
from starlette.responses import Response

from rill.client.errors import ServerError
from rill.gateway.api.choices import Job
from rill.gateway.api.disconnects import Disconnect
from rill.gateway.api.event_stream import EventStream
from rill.gateway.api.fields import fields_of
from rill.gateway.api.parameters import Completion, completion_of
from rill.gateway.api.resolution import ATTEMPTS, begun_with, model_for, replaced_error
from rill.gateway.api.texts import Texts
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError, draining_error
from rill.gateway.servers import Servers


async def completions(request: Request) -> Response | EventStream:
    """Answer with the texts that are requested. Raises ApiError before the first event."""
    completion = completion_of(await fields_of(request))
    try:
        return await _answer(request, completion)
    except ServerError as error:
        raise ApiError.from_server(error, completion.names) from None


async def _answer(request: Request, completion: Completion) -> Response | EventStream:
    """Return the answer. Raises ApiError and ServerError before the first event."""
    with Disconnect(request.receive, request.app.state.drain):
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
    client, request_id = servers.for_request(request), request.state.request_id
    for attempt in range(ATTEMPTS):
        if drain.has_begun:
            raise draining_error()
        model = await model_for(servers, client, completion.model, completion.resume_token)
        texts = Texts(Job(completion, model, servers.for_call(client, model), request_id, drain))
        is_begun = False
        try:
            _, is_begun = await begun_with(model, servers, client, texts.begin(), texts.reads_ids)
            if is_begun:
                return texts
        except ApiError:
            # The prompt may be one for a model that has replaced this one.
            if attempt + 1 == ATTEMPTS or (await servers.models.fresh(client)).models.get(model.name) == model:
                raise
        except ServerError as error:
            # A token that this request made, and not one that it was given: its model was replaced.
            if completion.resume_token or not error.reason.startswith("RESUME_TOKEN_") or attempt + 1 == ATTEMPTS:
                raise
        finally:
            if not is_begun:
                await texts.aclose()
    raise replaced_error(completion.model)
