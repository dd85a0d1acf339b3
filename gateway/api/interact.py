"""`WebSocket /v1/interact`: Interact of rill.proto, its messages as protobuf's JSON, one object a frame, both ways.

The first frame is `open`. Whatever ends the conversation but the client is a last frame, {"error": …}: OpenAI's error
with the HTTP `status` of its kind, the `request_id`, and a `resume_token` where there is a state to continue from.
"""

import asyncio
import base64
import binascii
import json
import re
from contextlib import aclosing, suppress
from typing import Any

from google.protobuf import json_format
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from rill.client.aio import AsyncClient, AsyncSession
from rill.client.errors import ServerError, SessionStateError
from rill.client.symbols import symbol_count
from rill.gateway.drain import Drain
from rill.gateway.errors import ApiError, answer_with_error, draining_error
from rill.gateway.servers import Servers
from rill.v1 import rill_pb2 as pb

PROTOCOL, BEARER = "rill.v1", "rill.bearer."
MOST_WAITING = 1024  # actions without an answer
MOST_CHARS = 16_000_000  # of texts that wait to be read
OPEN_SECONDS = 30.0  # within which the first frame arrives
LAST_SECONDS = 2.0  # for the last state of a conversation that ends
LONGEST_REASON = 300  # characters
PAUSE = pb.InteractRequest(pause=pb.InteractRequest.Pause())
SNAPSHOT = pb.InteractRequest(snapshot=pb.InteractRequest.Snapshot())

GOING_AWAY, NOT_TEXT, NOT_JSON, POLICY, INTERNAL, TRY_LATER = 1001, 1003, 1007, 1008, 1011, 1013  # close codes


class EndError(Exception):
    """Why a conversation ends: what the last frame says, and the close code."""

    def __init__(self, error: ApiError, code: int | None = None, token: bytes = b"", position: int = 0) -> None:
        super().__init__(error, code, token, position)  # what a copy is made of
        self.error, self.token, self.position = error, token, position
        self.code = code or {429: TRY_LATER, 503: TRY_LATER}.get(
            error.status, POLICY if error.status < 500 else INTERNAL
        )

    @classmethod
    def out_of_order(cls, message: str) -> "EndError":
        """Return the end after an action that is not valid at this point."""
        return cls(ApiError(400, message, code="out_of_order"))

    def frame(self, request_id: str) -> str:
        """Return the last frame."""
        error: dict[str, Any] = {**self.error.body["error"], "status": self.error.status, "request_id": request_id}
        if self.token:
            error |= {"resume_token": base64.b64encode(self.token).decode(), "position": str(self.position)}
        return json.dumps({"error": error})


async def upgrade_required(request: Request) -> Response:
    """Answer a request that is not a WebSocket's."""
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    return await answer_with_error(request, ApiError(426, f"{request.url.path} is a WebSocket", headers=headers))


async def interact(websocket: WebSocket) -> None:
    """Hold one conversation."""
    offered: list[str] = websocket.scope["subprotocols"]
    if offered and PROTOCOL not in offered:
        raise ApiError(400, f"the subprotocols must have {PROTOCOL!r} among them")
    servers: Servers = websocket.app.state.servers
    client = servers.for_call(servers.for_request(_with_token(websocket, offered)))
    await websocket.accept(PROTOCOL if offered else None)
    conversation = _Conversation(websocket, client, websocket.app.state.drain)
    with suppress(OSError):  # the client has left
        await conversation.hold()


def _with_token(websocket: WebSocket, offered: list[str]) -> HTTPConnection:
    """Return the request, with the bearer token that a browser can only send as a subprotocol. Raises ApiError."""
    coded = [name.removeprefix(BEARER) for name in offered if name.startswith(BEARER)]
    if not coded:
        return websocket
    try:
        token = base64.b64decode(coded[0] + "=" * (-len(coded[0]) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(401, f"the subprotocol {BEARER}… must end with a token in base64url") from None
    header = (b"authorization", b"Bearer " + token)
    others = [pair for pair in websocket.scope["headers"] if pair[0] != b"authorization"]
    return HTTPConnection({**websocket.scope, "headers": [*others, header]})


class _Conversation:
    """What one client says and hears."""

    def __init__(self, websocket: WebSocket, client: AsyncClient, drain: Drain) -> None:
        self._websocket, self._client, self._drain = websocket, client, drain
        self._opening: asyncio.Future[pb.InteractRequest.Open] = asyncio.get_running_loop().create_future()
        self._early: list[pb.InteractRequest] = []  # actions that came before the session was open
        self._session: AsyncSession | None = None  # while it is open
        self._snapshots = 0  # that the session was asked for and has not answered
        self._is_generating = self._is_paused_by_us = False
        self._end: EndError | None = None  # to come once the last state is known
        self._generated = 0

    async def hold(self) -> None:
        """Hold it to its end."""
        reading, talking, draining = (
            asyncio.create_task(one) for one in (self._read(), self._talk(), self._drain.wait())
        )
        try:
            await asyncio.wait([reading, talking, draining], return_when=asyncio.FIRST_COMPLETED)
            if draining.done() and not (talking.done() or reading.done()):
                self._begin_end(EndError(draining_error(), GOING_AWAY), is_draining=True)
            elif reading.done() and not talking.done():
                if not (refusal := reading.exception()):
                    return  # the client has left
                if not isinstance(refusal, EndError):
                    raise refusal
                self._begin_end(refusal)
            await asyncio.wait([talking], timeout=LAST_SECONDS if self._session else 0)
            await self._say_end(talking)
        finally:
            for task in (reading, talking, draining):
                task.cancel()
            await asyncio.gather(reading, talking, draining, return_exceptions=True)
            self._websocket.state.fields["generated_chars"] = self._generated

    async def _read(self) -> None:
        """Do what the client says, until it has left. Raises EndError."""
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            action = _parsed(message.get("text"))
            if not self._opening.done():
                if action.WhichOneof("action") != "open":
                    raise EndError.out_of_order("the first frame must be an open action")
                self._opening.set_result(action.open)
            elif self._session is None:
                self._early.append(action)
                self._check_waiting(len(self._early), sum(len(one.feed) for one in self._early))
            else:
                self._act(self._session, action)
                self._check_waiting(*self._session.waiting)

    def _check_waiting(self, actions: int, chars: int) -> None:
        if actions > MOST_WAITING:
            raise EndError(ApiError(429, f"more than {MOST_WAITING} actions wait: read the answers"), POLICY)
        if chars > MOST_CHARS:
            raise EndError(ApiError(429, f"more than {MOST_CHARS} characters wait to be read"), POLICY)

    def _act(self, session: AsyncSession, action: pb.InteractRequest) -> None:
        kind = action.WhichOneof("action")
        try:
            session.act(action)
        except SessionStateError as error:
            raise EndError.out_of_order(str(error)) from None
        except ServerError:  # `_talk` raises it
            return
        self._snapshots += kind == "snapshot"
        self._is_generating |= kind == "generate"

    async def _talk(self) -> None:
        """Tell the client what happens. Raises EndError, at last."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                opening = await self._opening
        except TimeoutError:
            raise EndError(ApiError(408, f"the first frame did not arrive within {OPEN_SECONDS:g} s")) from None
        session = self._client.session(opening, request_id=self._websocket.state.request_id)
        try:
            async with session:
                opened = pb.InteractResponse.Opened(seed=session.seed, model_id=session.model_id)
                await self._send(pb.InteractResponse(opened=opened))
                self._session = session
                try:
                    for action in self._early:
                        self._act(session, action)
                except EndError as refusal:
                    self._begin_end(refusal)
                while True:
                    try:
                        async with aclosing(session.events()) as events:
                            async for event in events:
                                await self._tell(event, session)
                    except SessionStateError as error:  # an action behind a pause
                        self._begin_end(EndError.out_of_order(str(error)))
        except ServerError as error:
            raise EndError(
                ApiError.from_server(error, {}), token=error.resume_token, position=session.resume_position
            ) from None

    async def _tell(self, event: pb.InteractResponse, session: AsyncSession) -> None:
        match event.WhichOneof("event"):
            case "output":
                self._generated += symbol_count(event.output)
                self._is_generating &= not event.output.finish_reason
            case "paused":
                self._is_generating = False
                if self._is_paused_by_us:
                    return
            case "snapshot":
                self._snapshots -= 1
                if self._end and not self._snapshots:
                    self._end.token, self._end.position = event.snapshot.resume_token, event.snapshot.position
                    if self._is_paused_by_us:  # as a server that is shutting down says it
                        event = pb.InteractResponse(
                            output=pb.GenerateResponse(
                                position=event.snapshot.position,
                                text_position=session.text_position,
                                resume_token=event.snapshot.resume_token,
                                finish_reason=pb.FINISH_REASON_DRAINING,
                            )
                        )
                    await self._send(event)
                    raise self._end
        await self._send(event)

    def _begin_end(self, end: EndError, is_draining: bool = False) -> None:
        """End the conversation with the state that it has then."""
        if self._end:
            return
        self._end, session = end, self._session
        if session is None:
            return
        end.token, end.position = session.resume_token, session.resume_position  # if there is no later one in time
        with suppress(SessionStateError, ServerError):
            if is_draining and self._is_generating:
                session.act(PAUSE)
                self._is_paused_by_us = True
        with suppress(SessionStateError, ServerError):
            session.act(SNAPSHOT)
            self._snapshots += 1

    async def _say_end(self, talking: asyncio.Task[None]) -> None:
        end = talking.exception() if talking.done() else self._end
        if not isinstance(end, EndError):
            raise end or AssertionError
        await self._websocket.send_text(end.frame(self._websocket.state.request_id))
        await self._websocket.close(end.code)

    async def _send(self, event: pb.InteractResponse) -> None:
        fields = json_format.MessageToDict(event)
        await self._websocket.send_text(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def _parsed(text: str | None) -> pb.InteractRequest:
    """Return the action of a frame. Raises EndError."""
    if text is None:
        raise EndError(ApiError(400, "frames must be text: an action as JSON"), NOT_TEXT)
    action = pb.InteractRequest()
    try:
        json_format.Parse(text, action)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise EndError(ApiError(400, f"the frame is not an InteractRequest: {_reason(error)}"), NOT_JSON) from None
    if not action.WhichOneof("action"):
        kinds = ", ".join(field.name for field in pb.InteractRequest.DESCRIPTOR.fields)
        raise EndError(ApiError(400, f"the frame has no action: give one of {kinds}"), NOT_JSON)
    return action


def _reason(error: Exception) -> str:
    """Return what protobuf says in one line, which is not too long."""
    text = " ".join(str(error).split())
    if unknown := re.search(r'no field named "(.*?)" at "InteractRequest\.?(.*?)"', text):
        return f"there is no field {unknown[1]!r}{f' in {unknown[2]}' if unknown[2] else ''}"
    if several := re.search(r'multiple "(.*?)" oneof fields at "InteractRequest\.?(.*?)"', text):
        return f"{several[2] or 'it'} has more than one {several[1]}"
    return text.removeprefix("Failed to load JSON: ")[:LONGEST_REASON]
