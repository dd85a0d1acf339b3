"""Many texts at once, to their ends: what `rill batch` does between its input and its output.

As many texts as there are streams are in the making, and a line of the input is read when one of them is complete: so
memory grows neither with the input nor with the output.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import grpc

from rill.cli.batch.input import Prompt
from rill.cli.batch.output import Texts
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.requests import finish_reason
from rill.client.security import PLAIN, Security
from rill.v1 import rill_pb2 as pb

FIRST_WAIT, LONGEST_WAIT = 0.5, 5.0  # seconds, until a text that was refused for lack of place is asked for again

# CANCELLED is how gRPC refuses calls that come faster than a server takes them up.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

Came = Callable[[int], None]


class RefusedError(Exception):
    """A prompt that nobody makes a text of: it has a character that the model does not know, say."""


class Text(NamedTuple):
    """A whole text; `finish_reason` is LENGTH or STOP."""

    text: str
    finish_reason: str


class Source(Protocol):
    """What makes texts: servers, or the engine in this process (`rill.cli.batch.local`)."""

    async def model_id(self) -> str:
        """Of the model that makes them now."""

    async def text(self, request: pb.GenerateRequest, came: Came) -> Text:
        """A text; `came` is told how many characters have come, as they come. Raises RefusedError and others."""


class Servers:
    """Running servers of one model, which share the texts; each goes on with those of another one that is gone.

    `model` is its name there, empty for the first server's first; `model_id` is to be asked for before texts are. A
    text that was refused for lack of place is asked for again and again; one that no server can be reached for in
    `retry_seconds` is a ServerError. Made and used on one event loop.
    """

    def __init__(self, target: str, model: str, retry_seconds: float, security: Security = PLAIN) -> None:
        addresses = target.split(",")
        self._model, self._retry_seconds = model, retry_seconds
        # A client calls its first address as long as it is there.
        self._clients = [
            AsyncClient(",".join(addresses[at:] + addresses[:at]), retry_seconds=retry_seconds, security=security)
            for at in range(len(addresses))
        ]
        self._turns = cycle(self._clients)

    async def model_id(self) -> str:
        """On all servers that can be reached. Raises ServerError, and ValueError if they have none or several."""
        ids = set()
        for client in self._clients:
            info = _model_of(await client.models(), self._model)
            self._model = info.name
            ids.add(str(info.model_id))
        if len(ids) > 1:
            raise ValueError(f"the servers have different models named {self._model!r}")
        return ids.pop()

    async def text(self, request: pb.GenerateRequest, came: Came) -> Text:
        """See Source; also raises ServerError."""
        request.model = self._model
        client, patience = next(self._turns), _Patience(self._retry_seconds)
        while True:
            parts, reason = [], pb.FINISH_REASON_UNSPECIFIED
            try:
                async for message in client.stream(request):
                    parts.append(message.text)
                    reason = message.finish_reason
                    came(len(message.text))
                return Text("".join(parts), finish_reason(reason))
            except ServerError as error:
                if _is_refusal(error):
                    raise RefusedError(str(error)) from None
                wait = patience.wait(error, bool(parts))
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()


class _Patience:
    """How long to wait until a text is asked for again, from its beginning."""

    def __init__(self, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds
        self._failures = 0
        self._unreachable: float | None = None  # since when

    def wait(self, error: ServerError, had_begun: bool) -> float:
        """Seconds: more each time, and at random, so that those who were refused together do not come together.

        Raises the error if that is in vain. The client has tried for as long as it may with a text that had begun.
        """
        now = time.monotonic()
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._unreachable = None
        elif error.code in _AWAY and not had_begun:
            self._unreachable = now if self._unreachable is None else self._unreachable
            if now - self._unreachable >= self._retry_seconds:
                raise error
        else:
            raise error
        longest = min(FIRST_WAIT * 2.0 ** min(self._failures, 10), LONGEST_WAIT)
        self._failures += 1
        return random.uniform(1, 1.5) * max(longest, error.retry_seconds or 0.0)


class Batch:
    """The texts of `prompts`, up to `streams` of them in the making at a time, written to `texts`.

    `characters` counts those that have come, also of texts that are not complete.
    """

    def __init__(self, source: Source, prompts: Iterator[Prompt], texts: Texts, streams: int) -> None:
        self._source, self._prompts, self._texts, self._streams = source, prompts, texts, streams
        self.characters = 0

    async def run(self) -> None:
        """Until all are complete. Raises PromptError, OSError or what the source raises, of the first that fails."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._streams):
                    group.create_task(self._one_after_another())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _one_after_another(self) -> None:
        for prompt in self._prompts:
            self._texts.add(prompt.line, await self._fields(prompt))

    async def _fields(self, prompt: Prompt) -> dict[str, Any]:
        """What is written of a text, or why there is none."""
        fields = {"id": prompt.id, "seed": prompt.request.sampling.seed}
        try:
            text, finish_reason = await self._source.text(prompt.request, self._came)
        except RefusedError as error:
            return {**fields, "error": str(error)}
        return {**fields, "text": text, "chars": len(text), "finish_reason": finish_reason}

    def _came(self, characters: int) -> None:
        self.characters += characters


def _model_of(answer: pb.ListModelsResponse, name: str) -> pb.ModelInfo:
    """The model of this name, or the first if it is empty. Raises ValueError."""
    info: pb.ModelInfo
    for info in answer.models:
        if name in ("", info.name):
            if not info.streamable:
                raise ValueError(f"{info.name} tags or is bidirectional: it makes no texts")
            return info
    raise ValueError(f"no model {name!r} is served there, but {', '.join(info.name for info in answer.models)}")


def _is_refusal(error: ServerError) -> bool:
    """Whether the request is at fault, and not the moment; also one that is larger than what the server receives."""
    too_large = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_seconds is None
    return error.code is grpc.StatusCode.INVALID_ARGUMENT or too_large
