"""The texts of a completion: each a stream of a server, from its prompt to its end."""

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.seeds import seed_of
from rill.client.streams import AsyncMessageStream
from rill.client.symbols import symbol_count, text_position
from rill.gateway.api.logprobs import LogprobLists, prompt_logprobs
from rill.gateway.api.parameters import Completion
from rill.gateway.api.prompts import ReadPrompt, biases_of, lengths_of, read_prompt
from rill.gateway.drain import Drain
from rill.gateway.served_models import ServedModel
from rill.v1 import rill_pb2 as pb

RESUME_EVERY = 1024  # symbols: what a text is continued from where a server is lost
TOKEN_SECONDS = 5.0  # for a token at the exact end of a text that is drained

_FINISH = {pb.FINISH_REASON_LENGTH: "length", pb.FINISH_REASON_STOP: "stop"}


@dataclass(frozen=True)
class Job:
    """What the texts of one request share."""

    completion: Completion
    model: ServedModel
    client: AsyncClient
    request_id: str
    drain: Drain


@dataclass(slots=True)
class Piece:
    """A part of a choice's text, and what is known at its end. `seed` is on the first piece, `finish` on the last.

    `echoed` counts the characters at its beginning that are the prompt's; `lengths` are those of the symbols behind
    them, where symbols may be longer than a character. `position` is in symbols, `text_position` in characters.
    `matches` is on the last piece of a text that has a constraint.
    """

    choice: "Choice"
    text: str
    logprobs: LogprobLists | None = None
    token: bytes = b""
    position: int = 0
    seed: int | None = None
    finish: str | None = None
    echoed: int = 0
    text_position: int = 0
    lengths: list[int] = field(default_factory=list)
    matches: bool | None = None


@dataclass(frozen=True)
class Reading:
    """A prompt that a server has read: its log-probabilities, and the state after it as a token."""

    entries: list[pb.CharLogprob]
    token: bytes


class Prompt:
    """A prompt, which all its choices share: it is read once. Call `prepare` first."""

    def __init__(self, job: Job, given: str | list[int], field_name: str) -> None:
        self._job, self._given, self._field_name = job, given, field_name
        self._prepared = ReadPrompt("", None)
        self._reading: asyncio.Task[Reading] | None = None

    async def prepare(self, needs_ids: bool) -> None:
        """Find out what it is to the model. Raises ApiError for a symbol that the model lacks."""
        is_scored = self._job.completion.is_scored
        vocabulary = self._job.model.vocabulary
        self._prepared = await read_prompt(self._field_name, self._given, vocabulary, needs_ids, is_scored)

    @property
    def text(self) -> str:
        """What a server reads."""
        return self._prepared.text

    @property
    def ids(self) -> list[int]:
        """Its ids as they were given, or those of its text, if they are needed."""
        return self._prepared.given_ids

    @property
    def count(self) -> int:
        """How many symbols its text has."""
        return self._prepared.count

    @property
    def has_end(self) -> bool:
        """Tell whether it is a text with its end, behind which there is nothing."""
        return self._prepared.end is not None

    @property
    def is_read(self) -> bool:
        """Tell whether a server is reading it, or has."""
        return self._reading is not None

    async def read(self) -> Reading:
        """Let a server read it, once. Raises ServerError."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    def close(self) -> None:
        """End the reading."""
        if self._reading:
            self._reading.cancel()

    async def _read(self) -> Reading:
        completion = self._job.completion
        wanted = [completion.logprobs if completion.echo else None, completion.prompt_logprobs]
        counts = [count for count in wanted if count is not None]
        score = self._job.client.score(
            self.text,
            model=self._job.model.name,
            resume_token=completion.resume_token,
            top_logprobs=max(counts, default=None),
            as_prompt=True,
            include_end=self.has_end,
            request_id=self._job.request_id,
        )
        entries: list[pb.CharLogprob] = []
        token = b""
        async with score:
            async for message in score:
                entries += message.top
                token = message.total.resume_token
        return Reading(entries, token)

    def echo(self, count: int) -> LogprobLists:
        """Return the log-probabilities of its symbols, once it was read."""
        assert self._reading
        entries, symbols = self._reading.result().entries, self._job.model.vocabulary.symbols
        lists, prompt = LogprobLists(count), self._prepared
        if prompt.start is not None:
            lists.add_special(symbols[prompt.start], None)
        lists.add(self._as_given(entries if prompt.end is None else entries[:-1]))
        if prompt.end is not None:
            lists.add_special(symbols[prompt.end], entries[-1])
            if self._job.completion.max_tokens:  # as many symbols as clients expect: behind an end there is the end
                lists.add_special(symbols[prompt.end], pb.CharLogprob(logprob=0.0))
        return lists

    def _as_given(self, entries: list[pb.CharLogprob]) -> list[pb.CharLogprob]:
        """Return entries with the characters of the text where the server has a sign for unknown ones."""
        vocabulary, ids = self._job.model.vocabulary, self._prepared.ids
        if ids is None or vocabulary.are_characters or vocabulary.unknown_id not in ids:
            return entries
        at = 0
        for entry, length in zip(entries, lengths_of(ids, vocabulary), strict=True):
            entry.character = self.text[at : at + length]
            at += length
        return entries

    @property
    def logprobs_json(self) -> str:
        """vLLM's `prompt_logprobs`, once it was read."""
        count = self._job.completion.prompt_logprobs
        if count is None or self._reading is None:
            return "null"
        entries = self._reading.result().entries
        if self._prepared.start is not None:
            entries = [pb.CharLogprob(logprob=math.nan), *entries]
        return prompt_logprobs(entries, self.ids, self._job.model.vocabulary, count)


@dataclass
class Seeds:
    """The seeds of a request's texts. That of the first is not known before its first message if a token has it."""

    first: "asyncio.Future[int] | None" = None
    base: int | None = None

    async def of(self, prompt: int, sample: int) -> int | None:
        """Return the seed of a sample of a prompt; None for the one that a token has."""
        if self.base is None:
            if not prompt and not sample:
                return None
            assert self.first
            self.base = await asyncio.shield(self.first)
        seed = seed_of(self.base, prompt) if prompt else self.base
        return seed_of(seed, sample) if sample else seed

    def told(self, seed: int) -> None:
        """Note the seed of the first text."""
        if self.first and not self.first.done():
            self.first.set_result(seed)


class Choice:
    """One text. `position` is where it has been delivered to, and `token` stands at `token_position`."""

    def __init__(self, job: Job, prompt: Prompt, seeds: Seeds, index: int, number: tuple[int, int]) -> None:
        self.prompt, self.index = prompt, index
        self._job, self._seeds, self._number = job, seeds, number
        self.seed: int | None = None
        self.start: int | None = None
        self.position = self.text_position = self.token_position = 0
        self.token = b""
        self._request: pb.GenerateRequest | None = None
        self._unforked: pb.GenerateRequest | None = None  # the same without the state of the prompt
        self._messages: AsyncMessageStream[pb.GenerateResponse] | None = None
        self.is_begun = self.is_finished = False
        self.logprob = 0.0  # of the text, in nats, where texts are compared

    @property
    def generated(self) -> int:
        """How many symbols were delivered, beside an echo."""
        return 0 if self.start is None else self.position - self.start

    @property
    def mean_logprob(self) -> float:
        """The log-probability of a symbol of the text, in nats."""
        return self.logprob / self.generated if self.generated else float("-inf")

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the text in pieces; where it is drained, without an end. Raises ServerError and ApiError."""
        completion, prompt = self._job.completion, self.prompt
        echo = await self._read_prompt()
        if not completion.max_tokens or prompt.has_end:
            reading = await prompt.read()
            self.is_finished = True
            finish = "stop" if prompt.has_end else "length"
            yield Piece(self, prompt.text, echo, reading.token, finish=finish, echoed=len(prompt.text))
            return
        self.seed = await self._seeds.of(*self._number)
        self._request = await self._generate_request()
        if self._job.drain.has_begun and completion.stream:
            return
        offset = len(prompt.text) if completion.echo else 0
        self._messages = self._job.client.stream(self._request, request_id=self._job.request_id, instead=self._unforked)
        async with self._messages as messages:
            async for message in messages:
                is_first = self.start is None
                if is_first:
                    self._began(message)
                    if completion.echo:
                        yield Piece(
                            self,
                            prompt.text,
                            echo,
                            position=self.position,
                            seed=self.seed,
                            echoed=len(prompt.text),
                            text_position=self.text_position,
                        )
                piece = self._delivered(message, offset)
                offset += len(piece.text)
                if piece.finish == "stop" and completion.logprobs is not None and not completion.stop:
                    piece.logprobs = await self._with_end(piece.logprobs or LogprobLists(completion.logprobs, offset))
                if is_first and not completion.echo:
                    piece.seed = self.seed
                yield piece
                if piece.finish:
                    return

    def _began(self, message: pb.GenerateResponse) -> None:
        self.start = self.position = self.token_position = message.position
        self.text_position = text_position(message)
        self.seed = message.seed
        if self._number == (0, 0):
            self._seeds.told(message.seed)

    def _delivered(self, message: pb.GenerateResponse, offset: int) -> Piece:
        piece = Piece(self, message.text, lengths=list(message.symbol_lengths))
        if message.logprobs:
            count = self._job.completion.logprobs
            if count is not None:
                piece.logprobs = LogprobLists(count, offset)
                piece.logprobs.add(message.logprobs)
            self.logprob += sum(entry.logprob for entry in message.logprobs)
        self.position = piece.position = message.position + symbol_count(message)
        self.text_position = piece.text_position = text_position(message) + len(message.text)
        if message.resume_token:
            self.token, self.token_position = message.resume_token, self.position
            piece.token = message.resume_token
        if message.finish_reason in _FINISH:
            piece.finish, self.is_finished = _FINISH[message.finish_reason], True
            piece.matches = message.usage.matches if message.usage.HasField("matches") else None
        return piece

    async def end(self) -> None:
        """End the stream where it is, from another task: the gateway drains."""
        if self._messages:
            await self._messages.aclose()

    @property
    def token_here(self) -> bytes:
        """A token for the exact end of what was delivered; empty if there is none."""
        if self._messages:
            token, position = self._messages.resume_point[:2]
            if position > self.token_position or (position == self.token_position and not self.token):
                self.token, self.token_position = token, position
        return self.token if self.token_position == self.position else b""

    async def catch_up(self) -> None:
        """Get a token for the exact end of what was delivered, if the last one is older.

        The symbols since are generated once more. Where no server does, `token_here` remains empty.
        """
        if self._request and self.start is not None and not self.token_here:
            await self._catch_up(self._request)

    async def _catch_up(self, original: pb.GenerateRequest) -> None:
        start = self.start or 0
        from_start = _without_extras(self._unforked or original, self.position - start)
        if self.seed is not None:
            from_start.sampling.seed = self.seed
        request, instead = from_start, None
        if self.token:
            request = _without_extras(original, self.position - self.token_position)
            request.resume_token = self.token
            request.ClearField("prompt")
            request.ClearField("stop")  # the token has them, and a partial match
            request.sampling.ClearField("constraint")  # the token has it, and how far the text is in it
            instead = None if from_start.resume_token else from_start
        messages = self._job.client.stream(
            request, timeout=TOKEN_SECONDS, request_id=self._job.request_id, instead=instead
        )
        try:
            async with messages:
                async for message in messages:
                    if message.resume_token:
                        self.token, self.token_position = message.resume_token, message.position + symbol_count(message)
        except ServerError:  # the caller learns the position without a token
            pass

    async def _read_prompt(self) -> LogprobLists | None:
        """Read the prompt if its log-probabilities are wanted; return those of an echo."""
        completion = self._job.completion
        if completion.prompt_logprobs is not None or completion.is_scored:
            await self.prompt.read()
        return self.prompt.echo(completion.logprobs or 0) if completion.is_scored else None

    async def _with_end(self, lists: LogprobLists) -> LogprobLists:
        """Append the end symbol that ended the text: it has a log-probability, but no place in the text."""
        vocabulary, completion = self._job.model.vocabulary, self._job.completion
        if not vocabulary.ends or completion.ignores_ends or completion.resume_token or completion.constraint:
            return lists  # a stop string of the token, the end of a constraint, or nothing that is known here
        score = self._job.client.score(
            "",
            model=self._job.model.name,
            resume_token=self.token,
            top_logprobs=completion.logprobs,
            include_end=True,
            request_id=self._job.request_id,
        )
        async with score:
            async for message in score:
                for entry in message.top:
                    lists.add_special(vocabulary.ends[0], entry)
        return lists

    def _biases(self) -> dict[str, float]:
        completion, vocabulary = self._job.completion, self._job.model.vocabulary
        biases = biases_of(completion.bias, vocabulary)
        return biases | dict.fromkeys(vocabulary.ends, -math.inf) if completion.ignores_ends else biases

    async def _generate_request(self) -> pb.GenerateRequest:
        completion = self._job.completion
        sampling = pb.Sampling(
            temperature=completion.temperature,
            top_k=completion.top_k,
            top_p=completion.top_p,
            min_p=completion.min_p,
            seed=self.seed,
            logit_bias=self._biases(),
            constraint=completion.constraint.message if completion.constraint else None,
        )
        ranks = completion.best_of > completion.n
        request = pb.GenerateRequest(
            model=self._job.model.name,
            prompt=self.prompt.text,
            resume_token=completion.resume_token,
            max_chars=completion.max_tokens,
            sampling=sampling,
            stop=completion.stop,
            include_stop=completion.include_stop,
            logprobs=0 if ranks and completion.logprobs is None else completion.logprobs,
            resume_every=min(completion.resume_every or RESUME_EVERY, RESUME_EVERY),
            chars_per_second=completion.chars_per_second,
        )
        if self.prompt.text and (completion.best_of > 1 or self.prompt.is_read):
            token = (await self.prompt.read()).token
            if not completion.resume_token:
                self._unforked = pb.GenerateRequest()
                self._unforked.CopyFrom(request)
            request.resume_token = token
            request.ClearField("prompt")
        return request


def _without_extras(original: pb.GenerateRequest, max_chars: int) -> pb.GenerateRequest:
    """Return a request for the same text, for the sake of the token at its end."""
    request = pb.GenerateRequest()
    request.CopyFrom(original)
    request.max_chars, request.resume_every = max_chars, 0
    request.ClearField("logprobs")
    request.ClearField("chars_per_second")
    return request
