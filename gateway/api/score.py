"""`POST /v1/score`: the log-probability of each symbol of a given text, whole or as server-sent events."""

import math
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted

from starlette.requests import Request
from starlette.responses import Response

from rill.client import values
from rill.client.errors import ServerError
from rill.client.streams import AsyncMessageStream
from rill.gateway.api.disconnects import Disconnect
from rill.gateway.api.event_stream import DONE, EventStream, error_event
from rill.gateway.api.fields import Fields, fields_of
from rill.gateway.api.logprobs import number
from rill.gateway.api.parameters import encoded_token, token_of
from rill.gateway.api.prompts import lengths_of
from rill.gateway.api.resolution import ATTEMPTS, begun_with, model_for, replaced_error
from rill.gateway.errors import ApiError
from rill.gateway.served_models import ServedModel
from rill.gateway.servers import Servers
from rill.v1 import rill_pb2 as pb

MOST_COLLECTED = 4_000_000  # log-probabilities that an answer may have which is not streamed


@dataclass(frozen=True)
class ScoreFields:
    """A request; see rill.proto."""

    text: str
    model: str
    resume_token: bytes
    top_logprobs: int | None
    as_prompt: bool
    include_end: bool
    stream: bool


async def score(request: Request) -> Response | EventStream:
    """Answer with the log-probabilities. Raises ApiError and ServerError before the first event."""
    wanted = _wanted(await fields_of(request))
    with Disconnect(request.receive, request.app.state.drain):
        scores = await _begun(request, wanted)
        if wanted.stream:
            return EventStream(scores)
        try:
            return Response(await scores.body(), media_type="application/json")
        finally:
            await scores.aclose()
    return Response(status_code=499)


def _wanted(fields: Fields) -> ScoreFields:
    if "text" not in fields:
        fields.fail("text", "text is missing: what is to be scored")
    wanted = ScoreFields(
        text=fields.text("text"),
        model=fields.text("model"),
        resume_token=token_of(fields.text("resume_token")),
        top_logprobs=fields.whole("top_logprobs", 0, values.MOST_ALTERNATIVES),
        as_prompt=fields.flag("as_prompt"),
        include_end=fields.flag("include_end"),
        stream=fields.flag("stream"),
    )
    fields.ignore("user")
    fields.refuse_others()
    most = MOST_COLLECTED // (1 + (wanted.top_logprobs or 0))
    if not wanted.stream and len(wanted.text) > most:
        message = f"text has {len(wanted.text)} characters; without stream: true this request may have at most {most}"
        raise ApiError(400, message, "text")
    return wanted


async def _begun(request: Request, wanted: ScoreFields) -> "Scores":
    """Return the scores once the first has arrived, of the model that was served then."""
    servers: Servers = request.app.state.servers
    client, request_id = servers.for_request(request), request.state.request_id
    for _ in range(ATTEMPTS):
        model = await model_for(servers, client, wanted.model, wanted.resume_token)
        messages = servers.for_call(client, model).score(
            wanted.text,
            model=model.name,
            resume_token=wanted.resume_token,
            top_logprobs=wanted.top_logprobs,
            as_prompt=wanted.as_prompt,
            include_end=wanted.include_end,
            request_id=request_id,
        )
        scores, is_begun = Scores(messages, model, wanted.text), False
        try:
            _, is_begun = await begun_with(model, servers, client, scores.begin(), scores.reads_ids)
            if is_begun:
                return scores
        finally:
            if not is_begun:
                await scores.aclose()
    raise replaced_error(wanted.model)


class Scores:
    """The messages of a score as JSON. Call `begin` first, then either `events` or `body`, and `aclose` in any case."""

    def __init__(self, messages: AsyncMessageStream[pb.ScoreResponse], model: ServedModel, text: str) -> None:
        self._messages, self._lengths = messages, _SymbolLengths(model, text)
        self._first: pb.ScoreResponse
        self._head = (
            f'{{"id":"score-{secrets.token_hex(12)}","object":"score","created":{int(time.time())},'
            f'"model":{quoted(model.name)},"system_fingerprint":"{model.fingerprint}"'
        )

    @property
    def reads_ids(self) -> bool:
        """Tell whether the model's vocabulary matters to the answer."""
        return self._lengths.are_needed

    async def begin(self) -> None:
        """Wait for the first message. Raises ServerError."""
        self._first = await anext(self._messages)

    async def aclose(self) -> None:
        """End the call."""
        await self._messages.aclose()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the log-probabilities as server-sent events, and at the end the total and [DONE], or an error."""
        try:
            async for message in self._all():
                parts = _Lists()
                parts.add(message, self._lengths.next(len(message.logprobs)))
                total = _total(message.total) if message.HasField("total") else ""
                yield f'data: {self._head},"position":{message.position},{parts.json}{total}}}\n\n'.encode()
            yield DONE
        except ServerError as error:
            yield error_event(ApiError.from_server(error))

    async def body(self) -> bytes:
        """Return everything as one answer. Raises ServerError."""
        parts, total = _Lists(), ""
        async for message in self._all():
            parts.add(message, self._lengths.next(len(message.logprobs)))
            if message.HasField("total"):
                total = _total(message.total)
        return f"{self._head},{parts.json}{total}}}".encode()

    async def _all(self) -> AsyncGenerator[pb.ScoreResponse, None]:
        yield self._first
        async for message in self._messages:
            yield message


class _SymbolLengths:
    """How many characters the symbols of a text have that is scored part by part."""

    def __init__(self, model: ServedModel, text: str) -> None:
        known = model.known_vocabulary
        self._vocabulary = None if isinstance(known, str) or known.are_characters else known
        self._text, self._at = text, 0

    @property
    def are_needed(self) -> bool:
        """Tell whether symbols may be longer than a character."""
        return self._vocabulary is not None

    def next(self, count: int) -> list[int] | None:
        """Return those of the next `count` symbols, as far as there are any; None if each has one character."""
        if self._vocabulary is None:
            return None
        ids, self._at = self._vocabulary.cut(self._text, self._at, count)
        return lengths_of(ids, self._vocabulary)


class _Lists:
    """Log-probabilities, and the alternatives to each symbol if they were requested, as JSON texts.

    The lengths of the symbols are there where they may be longer than a character.
    """

    def __init__(self) -> None:
        self._logprobs: list[str] = []
        self._top: list[str] | None = None
        self._lengths: list[int] | None = None

    def add(self, message: pb.ScoreResponse, lengths: list[int] | None) -> None:
        """Append those of a message."""
        if lengths is not None:
            self._lengths = (self._lengths or []) + lengths
        self._logprobs += map(number, message.logprobs)
        if message.top:
            self._top = (self._top or []) + list(map(_alternatives, message.top))

    @property
    def json(self) -> str:
        """Two fields of an object, or three."""
        top = "null" if self._top is None else f"[{','.join(self._top)}]"
        lengths = "" if self._lengths is None else f',"symbol_lengths":{self._lengths}'
        return f'"logprobs":[{",".join(self._logprobs)}],"top_logprobs":{top}{lengths}'


def _alternatives(entry: pb.CharLogprob) -> str:
    if math.isnan(entry.logprob):
        return "null"
    return f"{{{','.join(f'{quoted(other.character)}:{number(other.logprob)}' for other in entry.alternatives)}}}"


def _total(total: pb.ScoreResponse.Total) -> str:
    perplexity = repr(total.perplexity) if math.isfinite(total.perplexity) else "null"
    return (
        f',"chars":{total.chars},"logprob":{total.logprob!r},"bits_per_char":{total.bits_per_char!r},'
        f'"perplexity":{perplexity},"resume_token":"{encoded_token(total.resume_token)}",'
        f'"usage":{{"prompt_tokens":{total.chars},"completion_tokens":0,"total_tokens":{total.chars}}}'
    )
