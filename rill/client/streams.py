"""What the methods of clients and sessions return: iterators of a text's pieces, or of messages."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from rill.client.lines import LineScore
from rill.client.requests import finish_reason, matches
from rill.client.symbols import symbol_count, symbols_of, text_position
from rill.v1 import rill_pb2 as pb

Message = TypeVar("Message", pb.GenerateResponse, pb.ScoreResponse)


class TextDetails:
    """What is known about a text up to its last piece that was taken.

    Attributes:
        request_id: the id of its calls in the logs of servers.
        seed: with it, the same request gives the same text; None before the first piece.
        finish_reason: LENGTH, STOP or DRAINING; None before the end, and where a text was closed, paused or failed.
        usage: characters and times of its last call; None before its last message. A text that was continued elsewhere
            took several calls.
        matches: whether the whole text matches its constraint; None before the end, and where it has none.
        position: the characters that the stream has generated so far, resumes included: symbols of the model, as in
            `max_chars` and `usage`.
        text_position: the same in code points: more where symbols such as "Cl" are longer than one.
        resume_token: the last one that has arrived, empty before that; the text continues from `resume_position`, and
            from code point `resume_text_position`.
        logprobs: one entry for each character so far, if they were requested; its `character` is the symbol's text.

    All of them remain as they are when the text ends, is closed or fails.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.seed: int | None = None
        self.finish_reason: str | None = None
        self.usage: pb.Usage | None = None
        self.position = self.resume_position = 0
        self.text_position = self.resume_text_position = 0
        self.resume_token = b""
        self.logprobs: list[pb.CharLogprob] = []
        self._piece = pb.GenerateResponse()

    @property
    def matches(self) -> bool | None:
        """See the class."""
        return matches(self.usage)

    @property
    def symbols(self) -> list[str]:
        """The last piece that was taken, cut into the symbols of the model: for most models its characters."""
        return symbols_of(self._piece.text, self._piece.symbol_lengths)

    def _received(self, message: pb.GenerateResponse) -> None:
        if self.seed is None:
            self.seed = message.seed
        self.position = message.position + symbol_count(message)
        self.text_position = text_position(message) + len(message.text)
        if message.text:
            self._piece = message
        if message.resume_token:
            self.resume_token, self.resume_position = message.resume_token, self.position
            self.resume_text_position = self.text_position
        if message.logprobs:
            self.logprobs.extend(message.logprobs)
        if message.finish_reason:
            self.finish_reason = finish_reason(message.finish_reason)
        if message.HasField("usage"):
            self.usage = message.usage


class _Closing:
    """An iterator whose work ends when it is closed, left by a with statement, or not used any more."""

    _messages: Generator[Any, None, None]
    _cancel: Callable[[], None]

    def close(self) -> None:
        """End the work, from any thread; a loop over the iterator ends. Closing it again does nothing."""
        try:
            self._messages.close()
        except ValueError:  # another thread is waiting for a message
            self._cancel()

    cancel = close  # its name in gRPC

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TextStream(TextDetails, _Closing, Iterator[str]):
    """The pieces of a text as they arrive, and what the server says about it; see `TextDetails`.

        text = client.generate("ROMEO:", max_chars=400)
        print("".join(text), text.seed, text.finish_reason)

    A call is made when the first piece is asked for. `close` or a with statement ends a text early; so does a loop that
    is left, if nothing else refers to the text. Iterating raises ServerError.
    """

    def __init__(
        self, messages: Generator[pb.GenerateResponse, None, None], cancel: Callable[[], None], request_id: str
    ) -> None:
        super().__init__(request_id)
        self._messages, self._cancel = messages, cancel

    def __next__(self) -> str:
        for message in self._messages:
            self._received(message)
            piece: str = message.text
            if piece:
                return piece
        raise StopIteration


class MessageStream(_Closing, Iterator[Message], Generic[Message]):
    """Messages as they arrive; `request_id` is the id of their calls in the logs of servers.

    `resume_point` is a token from which a text continues, and its position: the last that has arrived, empty before
    that. A server that goes away sends one, which no message here shows where the text is to be continued.

    A call is made when the first message is asked for. `close` or a with statement ends it early; so does a loop that
    is left, if nothing else refers to the iterator. Iterating raises ServerError.
    """

    def __init__(
        self,
        messages: Generator[Message, None, None],
        cancel: Callable[[], None],
        request_id: str,
        resume_point: Callable[[], tuple[bytes, int, int]] = lambda: (b"", 0, 0),
    ) -> None:
        self._messages, self._cancel, self.request_id, self._resume_point = messages, cancel, request_id, resume_point

    @property
    def resume_point(self) -> tuple[bytes, int]:
        """See the class."""
        return self._resume_point()[:2]

    @property
    def resume_text_position(self) -> int:
        """The position of `resume_point` in code points."""
        return self._resume_point()[2]

    def __next__(self) -> Message:
        message: Message = next(self._messages)
        return message


class LineScores(_Closing, Iterator[LineScore]):
    """The scores of lines, in order; see `Client.score_lines`.

    Work begins when the first score is asked for. `close` or a with statement ends it early; so does a loop that is
    left, if nothing else refers to the iterator. Iterating raises ServerError, and what the iterable of lines raises.
    """

    def __init__(self, scores: Generator[LineScore, None, None], cancel: Callable[[], None]) -> None:
        self._messages, self._cancel = scores, cancel

    def __next__(self) -> LineScore:
        score: LineScore = next(self._messages)
        return score


class _AsyncClosing:
    """`_Closing` for asyncio."""

    _messages: AsyncGenerator[Any, None]
    _cancel: Callable[[], None]

    async def aclose(self) -> None:
        """End the work, from any task; a loop over the iterator ends. Closing it again does nothing."""
        try:
            await self._messages.aclose()
        except RuntimeError:  # another task is waiting for a message
            self._cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncTextStream(TextDetails, _AsyncClosing, AsyncIterator[str]):
    """`TextStream` for asyncio.

        async with client.generate("ROMEO:", max_chars=400) as text:
            async for piece in text:
                print(piece, end="", flush=True)
        print(text.seed, text.finish_reason)

    A loop that is left early ends its call soon; `aclose` or an async with statement do at once.
    """

    def __init__(
        self, messages: AsyncGenerator[pb.GenerateResponse, None], cancel: Callable[[], None], request_id: str
    ) -> None:
        super().__init__(request_id)
        self._messages, self._cancel = messages, cancel

    async def __anext__(self) -> str:
        async for message in self._messages:
            self._received(message)
            piece: str = message.text
            if piece:
                return piece
        raise StopAsyncIteration


class AsyncMessageStream(_AsyncClosing, AsyncIterator[Message], Generic[Message]):
    """`MessageStream` for asyncio."""

    def __init__(
        self,
        messages: AsyncGenerator[Message, None],
        cancel: Callable[[], None],
        request_id: str,
        resume_point: Callable[[], tuple[bytes, int, int]] = lambda: (b"", 0, 0),
    ) -> None:
        self._messages, self._cancel, self.request_id, self._resume_point = messages, cancel, request_id, resume_point

    @property
    def resume_point(self) -> tuple[bytes, int]:
        """See the class."""
        return self._resume_point()[:2]

    @property
    def resume_text_position(self) -> int:
        """The position of `resume_point` in code points."""
        return self._resume_point()[2]

    async def __anext__(self) -> Message:
        message: Message = await anext(self._messages)
        return message


class AsyncLineScores(_AsyncClosing, AsyncIterator[LineScore]):
    """`LineScores` for asyncio."""

    def __init__(self, scores: AsyncGenerator[LineScore, None], cancel: Callable[[], None]) -> None:
        self._messages, self._cancel = scores, cancel

    async def __anext__(self) -> LineScore:
        score: LineScore = await anext(self._messages)
        return score


def end_call(call: Any) -> None:
    """End a call of gRPC. In its place interceptors may have put a plain generator, which ends it when it is closed."""
    if cancel := getattr(call, "cancel", None):
        cancel()
    elif close := getattr(call, "close", None):
        with suppress(ValueError):  # another thread is waiting in it
            close()
