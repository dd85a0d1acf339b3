"""A text that a person and a model write by turns, and that outlives the servers it is written on. No terminal here.

Every action ends with a snapshot, so that there is a token for the place where the next one begins. When a server
drains or is lost, another session is opened from the last token, what was shown since is generated once more, and
compared, and the action is done again or goes on.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from rill.client.aio import AsyncClient, AsyncSession
from rill.client.errors import ServerError
from rill.client.retry import FIRST_WAIT, LONGEST_WAIT
from rill.v1 import rill_pb2 as pb

AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
TOKEN_EVERY = 4096  # characters of a long turn
KEPT = 1_000_000  # characters of the text: as many as a server reads at once, unless told otherwise

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """Where a text stands: a token, and what was shown after it."""

    token: bytes = b""
    position: int = 0  # generated characters before the token
    ahead: str = ""
    text: str = ""  # what was read and written, `ahead` included, as far as it is known; the last KEPT characters
    is_whole: bool = True  # from the very beginning
    sampling: Mapping[str, Any] = field(default_factory=dict)  # what was set, and the seed

    def shows(self, text: str, ahead: str = "") -> "Place":
        """The same after some more text, of which `ahead` is to be generated once more."""
        whole = self.text + text
        is_whole = self.is_whole and len(whole) <= KEPT
        return replace(self, ahead=self.ahead + ahead, text=whole[-KEPT:], is_whole=is_whole)


class Chat:
    """One text, at the place `at`. Methods raise ServerError for what is refused; the text is then as it was.

    `turn` is what each turn of the model is asked for: max_chars, stop, include_stop, chars_per_second. `say` gets a
    sentence when a server is lost, which is looked for again for up to `retry_seconds`. Used on one event loop.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: str,
        turn: Mapping[str, Any],
        retry_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._client, self._model, self._turn, self._retry_seconds, self._say = client, model, turn, retry_seconds, say
        self.at = Place()
        self._forks: list[Place] = []
        self._stack = AsyncExitStack()
        self._session: AsyncSession | None = None  # that stands at this place, if one does
        self._writing: AsyncSession | None = None  # that the model's turn comes from
        self._is_pausing = False
        self._broken: float | None = None  # since when no server could be reached
        self._failures = 0

    async def begin(self, token: bytes, sampling: Mapping[str, Any]) -> None:
        """Open the first session."""
        session = await self._enter(self._model, token, sampling)
        given = {name: value for name, value in sampling.items() if value is not None}
        self.at = Place(is_whole=not token, sampling=given | {"seed": session.seed})
        self._keep(session)

    async def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read a text."""
        fed = await self._do(lambda session: session.feed(text))
        self.at = self.at.shows(text)
        return fed

    async def write(self) -> AsyncGenerator[str, None]:
        """The pieces of the model's turn; see `pause`."""
        most, made, is_over = self._turn["max_chars"], 0, False
        self._is_pausing = False
        while True:
            try:
                session = await self._here()
                if not is_over:
                    async with aclosing(self._written(session, most and most - made)) as pieces:
                        async for piece in pieces:
                            made += len(piece)
                            yield piece
                is_over = True
                await session.snapshot()
                self._keep(session)
                return
            except ServerError as error:
                await self._lost(error)
                is_over = is_over or self._is_pausing or (most > 0 and made == most)

    def pause(self) -> bool:
        """End the model's turn where it is; False if it is not writing, or has been told before."""
        if not self._writing or self._is_pausing:
            return False
        self._is_pausing = True
        self._writing.pause()
        return True

    async def update(self, **sampling: Any) -> None:
        """Change how characters are chosen. By another session, as what opens one is answered."""
        await self._settle()
        while True:
            try:
                self._keep(await self._enter("", self.at.token, sampling))
                break
            except ServerError as error:
                await self._lost(error)
        self.at = replace(self.at, sampling={**self.at.sampling, **sampling})

    async def token(self) -> bytes:
        """The text as it stands, as a resume token."""
        if self.at.ahead:
            await self._settle()
        return self.at.token

    async def load(self, token: bytes) -> None:
        """Go on from a token instead; it has its own parameters."""
        before, self.at = self.at, Place(token=token, is_whole=False)
        try:
            await self.close()
            await self._settle()
        except BaseException:
            self.at = before
            raise

    async def fork(self) -> int:
        """Keep this place for `back`, and go on with another seed; returns how many places are kept."""
        await self._settle()
        here = self.at
        await self.update(seed=secrets.randbits(53))
        self._forks.append(here)
        return len(self._forks)

    async def back(self) -> bool:
        """Go on from where the last fork began, as if it had not been; False if there is none."""
        if not self._forks:
            return False
        await self.close()
        self.at = self._forks.pop()
        return True

    async def model_name(self) -> str:
        """The name under which the model is served."""
        model_id = self._session.model_id if self._session else ""
        served = await self._client.models()
        return next((model.name for model in served.models if model.model_id == model_id), model_id[:12])

    async def close(self) -> None:
        """End the session, if one is open; whoever waits for it gets a ServerError. The text can go on."""
        self._session = None
        await self._stack.aclose()

    async def _written(self, session: AsyncSession, most: int) -> AsyncGenerator[str, None]:
        """The pieces of one generation. In a long one, tokens follow it."""
        later: pb.InteractResponse.Snapshot | None = None
        self._writing = session
        try:
            async with aclosing(session.generate(**{**self._turn, "max_chars": most})) as pieces:
                async for piece in pieces:
                    self._failures, self._broken = 0, None
                    self.at = self.at.shows(piece, ahead=piece)
                    yield piece
                    if later is None and len(self.at.ahead) >= TOKEN_EVERY:
                        later = await session.snapshot()
                    if later and (left := self.at.position + len(self.at.ahead) - later.position) >= 0:
                        ahead = self.at.ahead[len(self.at.ahead) - left :]
                        self.at = replace(self.at, token=later.resume_token, position=later.position, ahead=ahead)
                        later = None
        finally:
            self._writing = None

    async def _do(self, act: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        """Act, and keep the state after that; if a server is lost meanwhile, once more from the state before."""
        while True:
            try:
                session = await self._here()
                result = await act(session)
                await session.snapshot()
                self._keep(session)
                return result
            except ServerError as error:
                await self._lost(error)

    async def _settle(self) -> None:
        """See to it that there is a session, and that the token is of this very place."""

        async def act(session: AsyncSession) -> None:
            self.at = replace(self.at, sampling={**self.at.sampling, "seed": session.seed})

        await self._do(act)

    async def _here(self) -> AsyncSession:
        """A session that stands at this place, to be kept again after what is done with it."""
        if self._session:
            session, self._session = self._session, None
            return session
        try:
            session = await self._enter("", self.at.token, {})
            if ahead := self.at.ahead:
                parameters = {**self._turn, "max_chars": len(ahead), "chars_per_second": 0.0}
                if "".join([piece async for piece in session.generate(**parameters)]) != ahead:
                    self._say("this server would have written another text; it has read the one that is there instead")
                    session = await self._enter("", self.at.token, {})
                    await session.feed(ahead)
        except ServerError as error:
            if not (error.reason.startswith("RESUME_TOKEN_") and self.at.is_whole):
                raise
            self._say(f"{error}: it has read the text once more instead, and writes on as it likes")
            session = await self._enter(self._model, b"", self.at.sampling)
            await session.feed(self.at.text)
        return session

    async def _enter(self, model: str, token: bytes, sampling: Mapping[str, Any]) -> AsyncSession:
        await self.close()
        return await self._stack.enter_async_context(self._client.interact(model, token, **sampling))

    def _keep(self, session: AsyncSession) -> None:
        """This session stands at this place, and its token is of it."""
        self._session = session
        self.at = replace(self.at, token=session.resume_token, position=session.resume_position, ahead="")
        self._failures, self._broken = 0, None

    async def _lost(self, error: ServerError) -> None:
        """Wait before the next attempt. Raises the error if another one is of no use."""
        await self.close()
        now = time.monotonic()
        if error.code not in AWAY:
            raise error
        since = now if self._broken is None else self._broken
        if now - since >= self._retry_seconds:
            self._failures, self._broken = 0, None
            raise error
        if self._broken is None:
            self._broken = now
            self._say(f"interrupted ({error}); trying to go on for up to {self._retry_seconds:g} s")
        limit = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures, 20)) if self._failures else 0.0
        self._failures += 1
        await asyncio.sleep(max(random.uniform(0, limit), error.retry_seconds or 0.0))
