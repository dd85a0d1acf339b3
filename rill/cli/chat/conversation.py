"""A text that a person and a model write in turns, and that outlives the servers it is written on. No terminal here.

Its session is reopened elsewhere by the client when a server drains or is lost. Every action ends with a snapshot, so
that there is a token for the position where the next one begins: a session that was given up is opened again from it.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from rill.client.aio import AsyncClient, AsyncSession
from rill.client.errors import ServerError
from rill.client.requests import sampling_message
from rill.v1 import rill_pb2 as pb

CONSTRAINT = ("regex", "choices", "json_schema", "terminator")  # parameters of what each answer must match
KEPT = 1_000_000  # characters of the text: as many as a server reads at once by default

Result = TypeVar("Result")


@dataclass(frozen=True)
class TextPosition:
    """A position in a text: a token, and what was shown after it."""

    token: bytes = b""
    position: int = 0  # generated characters, as the model counts them, before the token
    ahead: tuple[str, ...] = ()  # its symbols
    text: str = ""  # what was read and written, `ahead` included, as far as it is known; the last KEPT characters
    is_whole: bool = True  # from the very beginning
    sampling: Mapping[str, Any] = field(default_factory=dict)  # what was set, and the seed
    is_answered: bool = False  # what the model's next turn writes is another answer

    def after(self, text: str, generated: Iterable[str] = ()) -> "TextPosition":
        """Return the position after more text, of which these symbols were generated."""
        whole = self.text + text
        is_whole = self.is_whole and len(whole) <= KEPT
        return replace(self, ahead=(*self.ahead, *generated), text=whole[-KEPT:], is_whole=is_whole)


class Chat:
    """One text, at the position `at`. Methods raise ServerError for what is refused; the text is then unchanged.

    `turn` is what each turn of the model requests: max_chars, stop, include_stop, chars_per_second. `report` gets a
    sentence when a server is lost; the client looks for one for up to `retry_seconds`. Used on one event loop.
    """

    def __init__(
        self,
        client: AsyncClient,
        model: str,
        turn: Mapping[str, Any],
        retry_seconds: float,
        report: Callable[[str], None],
    ) -> None:
        self._client, self._model, self._turn = client, model, turn
        self._retry_seconds, self._report = retry_seconds, report
        self.at = TextPosition()
        self.info = pb.ModelInfo()  # about the model, as far as its server says it
        self.has_ended = False  # the last turn, with an end symbol
        self.matches: bool | None = None  # whether the answer of the last turn matches what it must
        self._forks: list[TextPosition] = []
        self._stack = AsyncExitStack()
        self._session: AsyncSession | None = None  # the open one, at this position
        self._writing: AsyncSession | None = None  # the one that the model's turn comes from
        self._is_pausing = False
        self._has_begun = False

    async def begin(self, token: bytes, sampling: Mapping[str, Any]) -> None:
        """Open the first session."""
        session = await self._open(self._model, token, sampling)
        given = {name: value for name, value in sampling.items() if value is not None and name != "unconstrained"}
        self.at = TextPosition(is_whole=not token, sampling=given | {"seed": session.seed})
        self._has_begun = True
        self._keep(session)
        await self._look_up(session.model_id)

    async def feed(self, text: str) -> pb.InteractResponse.Fed:
        """Let the model read a text."""
        fed = await self._do(lambda session: session.feed(text))
        self.at = replace(self.at.after(text), is_answered=True)
        return fed

    async def write(self) -> AsyncGenerator[str, None]:
        """Yield the pieces of the model's turn; see `pause`. After a turn without an end, it continues that answer."""
        limit, count, is_over = self._turn["max_chars"], 0, False
        self._is_pausing, self.has_ended, self.matches = False, False, None
        if self.at.is_answered and self.constraint:
            await self._begin_answer()
        while True:
            try:
                session = await self._here()
                if not is_over:
                    async with aclosing(self._written(session, limit and limit - count)) as pieces:
                        async for symbols in pieces:
                            count += len(symbols)
                            yield "".join(symbols)
                is_over = True
                await session.snapshot()
                self._keep(session)
                return
            except ServerError as error:
                await self._recover(error)
                is_over = is_over or self._is_pausing or (limit > 0 and count == limit)

    def pause(self) -> bool:
        """End the model's turn where it is; False if it is not writing, or was paused before."""
        if not self._writing or self._is_pausing:
            return False
        self._is_pausing = True
        self._writing.pause()
        return True

    async def update(self, **sampling: Any) -> None:
        """Change how characters are chosen. In another session: opening one is answered, and an update is not."""
        message = sampling_message(**sampling)  # a ValueError is better before anything is done
        await self._settle()
        self._keep(await self._open("", self.at.token, sampling))
        kept = dict(self.at.sampling)
        if message.HasField("constraint"):
            kept = {name: value for name, value in kept.items() if name not in CONSTRAINT}
            self.at = replace(self.at, is_answered=False)
        sampling = {name: value for name, value in sampling.items() if name != "unconstrained"}
        self.at = replace(self.at, sampling=kept | sampling)

    @property
    def constraint(self) -> dict[str, Any]:
        """What each answer must match, as far as it was set here: the constraint of a token is not known."""
        return {name: value for name, value in self.at.sampling.items() if name in CONSTRAINT}

    async def token(self) -> bytes:
        """Return the text as it stands, as a resume token."""
        if self.at.ahead:
            await self._settle()
        return self.at.token

    async def load(self, token: bytes) -> None:
        """Continue from a token instead; it has its own parameters."""
        before, self.at = self.at, TextPosition(token=token, is_whole=False)
        try:
            await self.close()
            await self._settle()
            await self._look_up(self._session.model_id if self._session else "")
        except BaseException:
            self.at = before
            raise

    async def fork(self) -> int:
        """Keep this position for `back`, and continue with another seed; return how many positions are kept."""
        await self._settle()
        here = self.at
        await self.update(seed=secrets.randbits(53))
        self._forks.append(here)
        return len(self._forks)

    async def back(self) -> bool:
        """Continue from where the last fork began, as if it had not been made; False if there is none."""
        if not self._forks:
            return False
        await self.close()
        self.at = self._forks.pop()
        return True

    async def begin_again(self) -> int:
        """Begin a new text with the same parameters and another seed, which is returned."""
        sampling = {**self.at.sampling, "seed": secrets.randbits(53)}
        session = await self._open(self.info.name or self._model, b"", sampling)
        self.at = TextPosition(sampling=sampling)
        self._keep(session)
        return int(sampling["seed"])

    async def _look_up(self, model_id: str) -> None:
        """Find what is known of the model; a server that does not say it is no obstacle."""
        self.info = pb.ModelInfo(name=self._model, model_id=model_id)
        with suppress(ServerError):
            served = await self._client.models()
            self.info = next((model for model in served.models if model.model_id == model_id), self.info)

    async def close(self) -> None:
        """End the session, if one is open; whatever waits for it gets a ServerError. The text can be continued."""
        self._session = None
        await self._stack.aclose()

    async def _written(self, session: AsyncSession, limit: int) -> AsyncGenerator[list[str], None]:
        """Yield the pieces of one generation, each as its symbols, and follow its tokens."""
        self._writing = session
        try:
            async with aclosing(session.generate(**{**self._turn, "max_chars": limit})) as pieces:
                async for piece in pieces:
                    symbols = pieces.symbols
                    self.at = self.at.after(piece, symbols)
                    yield symbols
                    left = self.at.position + len(self.at.ahead) - session.resume_position
                    if 0 <= left < len(self.at.ahead):
                        token, ahead = session.resume_token, self.at.ahead[len(self.at.ahead) - left :]
                        self.at = replace(self.at, token=token, position=session.resume_position, ahead=ahead)
                if pieces.finish_reason == "STOP":
                    self.at = replace(self.at, is_answered=True)
                    can_end = not self._turn["stop"] and bool(self.info.end_symbols)
                    self.has_ended = can_end and pieces.matches is None
                self.matches = pieces.matches
        finally:
            self._writing = None

    async def _do(self, act: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
        """Act, and keep the state after that."""
        while True:
            try:
                session = await self._here()
                result = await act(session)
                await session.snapshot()
                self._keep(session)
                return result
            except ServerError as error:
                await self._recover(error)

    async def _begin_answer(self) -> None:
        """Let what the model writes next match the constraint from its beginning."""

        async def act(session: AsyncSession) -> None:
            session.update(**self.constraint)

        await self._do(act)
        self.at = replace(self.at, is_answered=False)

    async def _settle(self) -> None:
        """Have a session, and a token of this very position."""

        async def act(session: AsyncSession) -> None:
            self.at = replace(self.at, sampling={**self.at.sampling, "seed": session.seed})

        await self._do(act)

    async def _here(self) -> AsyncSession:
        """Return a session at this position, to be kept again after what is done with it."""
        if self._session:
            session, self._session = self._session, None
            return session
        try:
            session = await self._open("", self.at.token, {})
            if ahead := self.at.ahead:
                parameters = {**self._turn, "max_chars": len(ahead), "chars_per_second": 0.0}
                text = "".join(ahead)
                if "".join([piece async for piece in session.generate(**parameters)]) != text:
                    self._report(
                        "this server would have written another text; it has read the one that is there instead"
                    )
                    session = await self._open("", self.at.token, {})
                    await session.feed(text)
        except ServerError as error:
            if not (error.reason.startswith("RESUME_TOKEN_") and self.at.is_whole):
                raise
            self._report(f"{error}: it has read the text once more instead, and writes on as it likes")
            session = await self._open(self.info.name or self._model, b"", self.at.sampling)
            await session.feed(self.at.text)
        return session

    async def _open(self, model: str, token: bytes, sampling: Mapping[str, Any]) -> AsyncSession:
        """Open another session, in place of the one that is open."""
        await self.close()
        session = self._client.interact(model, token, on_interrupted=self._report_interruption, **sampling)
        return await self._stack.enter_async_context(session)

    def _keep(self, session: AsyncSession) -> None:
        """Keep a session that stands at this position; its token is of it."""
        self._session = session
        self.at = replace(self.at, token=session.resume_token, position=session.resume_position, ahead=())

    async def _recover(self, error: ServerError) -> None:
        """Close a session that ended. Raises the error, unless another session can do what this one could not.

        One that lost its server and found others with other keys or another text did continue from a token; an error
        without one is of a session that could not be opened.
        """
        await self.close()
        other_text = error.code is grpc.StatusCode.DATA_LOSS
        if not (error.resume_token and (other_text or error.reason.startswith("RESUME_TOKEN_"))):
            raise error

    def _report_interruption(self, error: ServerError) -> None:
        what = f"interrupted ({error}); trying to continue" if self._has_begun else f"{error}; trying"
        self._report(f"{what} for up to {self._retry_seconds:g} s")
