"""The models behind the gateway: their names, ids and symbols, as of a moment."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from rill.client.aio import AsyncClient
from rill.gateway.errors import ApiError
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import Vocabulary


@dataclass(frozen=True)
class ServedModel:
    """A model that is served; equal ones produce equal texts."""

    name: str
    model_id: str
    numerics: str
    vocabulary: Vocabulary
    info: pb.ModelInfo

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServedModel) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a text depends on, beside the request."""
        return self.name, self.model_id, self.numerics

    @cached_property
    def fingerprint(self) -> str:
        """A word that is equal where model and numerics are: OpenAI's `system_fingerprint`."""
        return "rill_" + sha256(f"{self.model_id} {self.numerics}".encode()).hexdigest()[:16]


class Listing:
    """The models that a server listed, the default first."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = {model.name: model for model in models}

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
    """The last listing, and fresh ones. Requests that need one at the same time share a call."""

    def __init__(self) -> None:
        self.last: Listing | None = None
        self._vocabularies: dict[str, Vocabulary] = {}  # by model id
        self._waiting: dict[AsyncClient, asyncio.Future[Listing]] = {}  # for a call that is yet to begin
        self._asking: dict[AsyncClient, asyncio.Task[None]] = {}

    async def fresh(self, client: AsyncClient) -> Listing:
        """Return a listing that was asked for after this was called. Raises ServerError."""
        waiting = self._waiting.get(client)
        if waiting is None:
            waiting = self._waiting[client] = asyncio.get_running_loop().create_future()
            waiting.add_done_callback(_seen)
        if client not in self._asking:
            self._asking[client] = asyncio.create_task(self._ask(client))
        return await asyncio.shield(waiting)

    async def latest(self, client: AsyncClient) -> Listing:
        """Return the last listing, which may be old, or the first one."""
        return self.last or await self.fresh(client)

    async def _ask(self, client: AsyncClient) -> None:
        try:
            while waiting := self._waiting.pop(client, None):
                try:
                    self.last = self._listing(await client.models())
                    waiting.set_result(self.last)
                except BaseException as error:
                    waiting.set_exception(error if isinstance(error, Exception) else ApiError(503, "shutting down"))
                    if not isinstance(error, Exception):
                        raise
        finally:
            del self._asking[client]

    def _listing(self, served: pb.ListModelsResponse) -> Listing:
        known = self._vocabularies
        self._vocabularies = {
            info.model_id: known.get(info.model_id) or Vocabulary(tuple(info.vocabulary), characters=False)
            for info in served.models
        }
        return Listing(
            ServedModel(info.name, info.model_id, info.numerics, self._vocabularies[info.model_id], info)
            for info in served.models
        )


def _seen(future: asyncio.Future[Listing]) -> None:
    """Take note of an exception, where all that waited have left."""
    if not future.cancelled():
        future.exception()
