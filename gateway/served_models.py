"""The models behind the gateway: their names, ids and symbols, and which servers have them, as of a moment."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import grpc

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.retry import is_away
from rill.gateway.errors import ApiError
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import CHARACTERS, Vocabulary

MOST_VOCABULARIES = 1000  # that are kept
ANSWER_SECONDS = 5.0  # within which a server answers
RECENT_SECONDS = 0.05  # for which a listing is good enough to say what a text was made by
KNOWN_DOWN_SECONDS = 2.0  # for which a server that did not answer is not asked again


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that is served; equal ones produce equal texts.

    `addresses` are the servers that serve it by its name, `silent` those that do not answer and may have it, too.
    `known_vocabulary` is why it cannot be used here if the server's version has kinds of them that this one lacks.
    """

    name: str
    model_id: str
    numerics: str
    known_vocabulary: Vocabulary | str
    info: pb.ModelInfo
    addresses: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServedModel) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its symbols. Raises ApiError if this gateway cannot use them."""
        if isinstance(self.known_vocabulary, str):
            message = f"this gateway cannot use the vocabulary of model {self.name!r}: {self.known_vocabulary}"
            raise ApiError(501, message, "model", headers={"x-should-retry": "false"})
        return self.known_vocabulary

    @cached_property
    def fingerprint(self) -> str:
        """A word that is equal where model and numerics are: OpenAI's `system_fingerprint`."""
        return "rill_" + sha256(f"{self.model_id} {self.numerics}".encode()).hexdigest()[:16]

    @property
    def _identity(self) -> tuple[str, str, str]:
        return self.name, self.model_id, self.numerics


class Listing:
    """The models that are served, the default first. Where servers disagree about a name, the first one is right."""

    def __init__(self, servers: "Sequence[_Server]") -> None:
        self.models: dict[str, ServedModel] = {}
        for model in (model for server in servers for model in server.models or ()):
            if model.name not in self.models:
                having = tuple(number for number, server in enumerate(servers) if server.has(model))
                silent = tuple(number for number, server in enumerate(servers) if server.is_silent)
                self.models[model.name] = replace(model, addresses=having, silent=silent)

    def find(self, name: str) -> ServedModel:
        """Return the model of this name; an empty one is the default. Raises ApiError."""
        if not name and self.models:
            return next(iter(self.models.values()))
        if name not in self.models:
            names = ", ".join(map(repr, self.models))
            message = f"no model {name!r} is served here; the models are {names}"
            raise ApiError(404, message, "model", "model_not_found")
        return self.models[name]

    def by_id(self, model_id: str) -> ServedModel | None:
        """Return the first model with this id."""
        return next((model for model in self.models.values() if model.model_id == model_id), None)


class ServedModels:
    """The last listing, and fresh ones. Requests that need one at the same time share a call to each server."""

    def __init__(self, addresses: int) -> None:
        self._vocabularies: dict[str, Vocabulary | str] = {}  # by model id; why it cannot be used
        self._servers = [_Server(number, self._vocabulary, self._changed) for number in range(addresses)]
        self._listing: Listing | None = None  # None after a change

    async def fresh(self, client: AsyncClient, age: float = 0.0) -> Listing:
        """Return a listing that was asked for after this was called, or at most `age` seconds before.

        A server that did not answer a moment ago is waited for only if no other one answers. Raises ServerError.
        """
        since = time.monotonic() - age
        awaited = [server for server in self._servers if not server.is_down]
        failures = [await asking for asking in [server.ask(client, since) for server in awaited]]
        if None not in failures:
            others = [server.ask(client, since) for server in self._servers if server not in awaited]
            failures += [await asking for asking in others]
        elif len(awaited) < len(self._servers):
            for server in self._servers:
                server.look_again(client)
        if None not in failures:
            raise next(failure for failure in failures if failure)
        return self._known()

    def recent(self) -> Listing | None:
        """Return the last listing if it was asked for a moment ago."""
        begin = time.monotonic() - RECENT_SECONDS
        listed = [server.listed_at > begin for server in self._servers]
        is_enough = all(now or server.is_silent for now, server in zip(listed, self._servers, strict=True))
        return self._known() if any(listed) and is_enough else None

    async def latest(self, client: AsyncClient) -> Listing:
        """Return the last listing, which may be old, or the first one."""
        known = self._known()
        return known if known.models else await self.fresh(client)

    def _known(self) -> Listing:
        if self._listing is None:
            self._listing = Listing(self._servers)
        return self._listing

    def _changed(self) -> None:
        self._listing = None

    def _vocabulary(self, info: pb.ModelInfo) -> Vocabulary | str:
        found = self._vocabularies.get(info.model_id)
        if found is None:
            if len(self._vocabularies) > MOST_VOCABULARIES:
                self._vocabularies.clear()
            found = self._vocabularies[info.model_id] = _vocabulary_of(info)
        return found


def _vocabulary_of(info: pb.ModelInfo) -> Vocabulary | str:
    """Return a model's vocabulary, or why this version cannot use it."""
    try:
        return Vocabulary(
            tuple(info.vocabulary), info.tokenizer or CHARACTERS, info.start_symbol, tuple(info.end_symbols)
        )
    except ValueError as error:
        return str(error)


class _Server:
    """What one server said last; `models` is None before it has."""

    def __init__(
        self, number: int, vocabulary: Callable[[pb.ModelInfo], Vocabulary | str], on_change: Callable[[], None]
    ) -> None:
        self.models: list[ServedModel] | None = None
        self.is_down = False
        self.listed_at = 0.0  # when the last listing was asked for, time.monotonic()
        self._number, self._vocabulary, self._on_change, self._asked = number, vocabulary, on_change, 0.0
        self._waiting: dict[AsyncClient, asyncio.Future[ServerError | None]] = {}  # for a call that is yet to begin
        self._asking: dict[AsyncClient, asyncio.Task[None]] = {}
        self._present: dict[AsyncClient, tuple[float, asyncio.Future[ServerError | None]]] = {}  # calls under way

    def has(self, model: ServedModel) -> bool:
        """Tell whether it has said that it serves the model."""
        if self.is_silent:
            return False
        return any(other.name == model.name and other.model_id == model.model_id for other in self.models or ())

    @property
    def is_silent(self) -> bool:
        """Tell whether it is not known what the server has now."""
        return self.is_down or self.models is None

    def look_again(self, client: AsyncClient) -> None:
        """Ask a server that did not answer, in the background, if that is not too soon."""
        if self.is_down and client not in self._asking and time.monotonic() > self._asked + KNOWN_DOWN_SECONDS:
            self._begin(client)

    def ask(self, client: AsyncClient, since: float) -> "asyncio.Future[ServerError | None]":
        """Take a listing that is asked for after a moment; the result is the error if there is none."""
        begin, present = self._present.get(client, (0.0, None))
        if present and not present.done() and begin > since:
            return asyncio.shield(present)
        return asyncio.shield(self._begin(client))

    def _begin(self, client: AsyncClient) -> "asyncio.Future[ServerError | None]":
        waiting = self._waiting.get(client)
        if waiting is None:
            waiting = self._waiting[client] = asyncio.get_running_loop().create_future()
        if client not in self._asking:
            self._asking[client] = asyncio.create_task(self._ask(client))
        return waiting

    async def _ask(self, client: AsyncClient) -> None:
        only = client.at(self._number)
        try:
            while waiting := self._waiting.pop(client, None):
                failure, begin = None, time.monotonic()
                self._present[client] = begin, waiting
                try:
                    self._take(await only.models(timeout=ANSWER_SECONDS))
                    self.listed_at = begin
                except ServerError as error:
                    failure = error
                    if is_away(error) or error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                        self._set(self.models, is_down=True)
                except BaseException:  # of a gateway that ends
                    waiting.cancel()
                    raise
                self._asked = time.monotonic()
                if not waiting.done():
                    waiting.set_result(failure)
        finally:
            del self._asking[client], self._present[client]
            if unanswered := self._waiting.pop(client, None):
                unanswered.cancel()

    def _take(self, served: pb.ListModelsResponse) -> None:
        models = [
            ServedModel(info.name, info.model_id, info.numerics, self._vocabulary(info), info) for info in served.models
        ]
        self._set(self.models if models == self.models else models, is_down=False)

    def _set(self, models: list[ServedModel] | None, is_down: bool) -> None:
        if models is not self.models or is_down != self.is_down:
            self.models, self.is_down = models, is_down
            self._on_change()
