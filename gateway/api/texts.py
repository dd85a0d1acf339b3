"""The texts of one completion together, and OpenAI's JSON of them."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from json.encoder import encode_basestring_ascii as quoted

from rill.client.errors import ServerError
from rill.client.retry import is_full
from rill.gateway.api.choices import Choice, Job, Piece, Prompt, Seeds
from rill.gateway.api.event_stream import DONE, error_event
from rill.gateway.api.logprobs import LogprobLists
from rill.gateway.api.merging import merged
from rill.gateway.api.parameters import check_texts, encoded_token
from rill.gateway.api.prompts import ids_of_symbols
from rill.gateway.errors import ApiError, as_api_error, draining_error

AT_ONCE = 64  # texts of one request


class Texts:
    """All choices of a request. Call `begin` first, then either `events` or `body`, and `aclose` in any case."""

    def __init__(self, job: Job) -> None:
        self._job, completion = job, job.completion
        many = len(completion.prompts) > 1
        self._prompts = [
            Prompt(job, given, f"prompt[{at}]" if many else "prompt") for at, given in enumerate(completion.prompts)
        ]
        base = completion.seed
        if base is None and not completion.resume_token:
            base = secrets.randbits(53)  # exact in JSON, too
        self._seeds = Seeds(asyncio.get_running_loop().create_future() if base is None else None, base)
        samples = completion.best_of
        self._choices = [
            Choice(job, prompt, self._seeds, at * samples + sample, (at, sample))
            for at, prompt in enumerate(self._prompts)
            for sample in range(samples)
        ]
        self._unfinished = len(self._choices)
        # Of many prompts, one with a symbol that the model lacks is refused before a text begins.
        self._needs_ids = many or completion.token_ids or completion.prompt_logprobs is not None
        if len(self._choices) == 1:
            self._pieces = self._choices[0].pieces()
        else:
            self._pieces = merged([choice.pieces for choice in self._choices], AT_ONCE, _is_full)
        self._first: Piece | None = None
        self._ending: asyncio.Task[None] | None = None
        self._head = (
            f'{{"id":"cmpl-{secrets.token_hex(12)}","object":"text_completion","created":{int(time.time())},'
            f'"model":{quoted(job.model.name)},"system_fingerprint":"{job.model.fingerprint}","choices":['
        )

    @property
    def reads_ids(self) -> bool:
        """Tell whether the model's vocabulary matters to the texts or their JSON."""
        return self._job.completion.reads_ids or not self._job.model.vocabulary.are_characters

    async def begin(self) -> None:
        """Wait for the first piece. Raises ServerError and ApiError."""
        check_texts(self._job.completion, self._job.model.vocabulary)
        for prompt in self._prompts:
            await prompt.prepare(self._needs_ids)
        self._ending = asyncio.create_task(self._end_with_gateway())
        self._first = await anext(self._pieces, None)
        if self._first is None:
            raise draining_error()

    async def aclose(self) -> None:
        """End all texts."""
        if self._ending:
            self._ending.cancel()
        await self._pieces.aclose()
        for prompt in self._prompts:
            prompt.close()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the texts as server-sent events: chunks, and at the end [DONE] or an error."""
        assert self._first
        try:
            piece: Piece | None = self._first
            while piece:
                chunk = self._chunk(piece)
                if piece.finish:
                    self._unfinished -= 1
                if not self._unfinished:
                    yield chunk + self._usage_event() + DONE
                    return
                yield chunk
                piece = await anext(self._pieces, None)
            yield await self._last_chunks() + error_event(draining_error())
        except (ServerError, ApiError) as error:
            yield await self._last_chunks(has_server=False) + error_event(
                as_api_error(error, self._job.completion.names)
            )

    async def _last_chunks(self, has_server: bool = True) -> bytes:
        """Return chunks without an end for the texts that are cut off, with tokens for exactly where they are.

        Without a server, only tokens that are there by chance are exact.
        """
        cut = [choice for choice in self._choices if choice.is_begun and not choice.is_finished]
        if has_server:
            await asyncio.gather(*(choice.catch_up() for choice in cut))
        return b"".join(
            self._chunk(
                Piece(
                    choice,
                    "",
                    None,
                    choice.token_here,
                    choice.position,
                    choice.seed,
                    text_position=choice.text_position,
                )
            )
            for choice in cut
        )

    async def body(self) -> bytes:
        """Return the texts as one answer. Raises ServerError and ApiError."""
        answers = {choice.index: _Answer(choice) for choice in self._choices}
        piece = self._first
        while piece:
            answers[piece.choice.index].add(piece)
            if piece.finish:
                self._unfinished -= 1
            piece = await anext(self._pieces, None)
        if self._unfinished:
            raise draining_error()
        chosen = self._best(list(answers.values()))
        choices = ",".join(
            self._choice(index, answer.choice, answer.whole, is_first=True, is_one_of_many=len(chosen) > 1)
            for index, answer in enumerate(chosen)
        )
        rill = self._rill(chosen[0].whole if len(chosen) == 1 else None, True)
        return f'{self._head}{choices}],"usage":{self._usage()},"rill":{rill}}}'.encode()

    async def _end_with_gateway(self) -> None:
        """End the streams where they are when the gateway drains."""
        await self._job.drain.wait()
        if self._job.completion.stream:
            await asyncio.gather(*(choice.end() for choice in self._choices))

    def _best(self, answers: "Sequence[_Answer]") -> "Sequence[_Answer]":
        completion = self._job.completion
        if completion.best_of == completion.n:
            return answers
        best: list[_Answer] = []
        for at in range(0, len(answers), completion.best_of):
            ranked = sorted(answers[at : at + completion.best_of], key=lambda answer: -answer.choice.mean_logprob)
            best += ranked[: completion.n]
        return best

    def _chunk(self, piece: Piece) -> bytes:
        choice = piece.choice
        completion = self._job.completion
        is_first, choice.is_begun = not choice.is_begun, True
        rill = ""
        if is_first or piece.finish or piece.seed is not None or (piece.token and completion.resume_every):
            rill = f',"rill":{self._rill(piece, is_first)}'
        usage = ""
        if completion.include_usage:
            usage = f',"usage":{self._usage() if completion.continuous_usage else "null"}'
        return f"data: {self._head}{self._choice(choice.index, choice, piece, is_first)}]{usage}{rill}}}\n\n".encode()

    def _choice(self, index: int, choice: Choice, piece: Piece, is_first: bool, is_one_of_many: bool = False) -> str:
        completion, more = self._job.completion, ""
        if completion.prompt_logprobs is not None and is_first:
            more += f',"prompt_logprobs":{choice.prompt.logprobs_json}'
        if completion.token_ids:
            ids = ids_of_symbols(piece.text[piece.echoed :], piece.lengths, self._job.model.vocabulary)
            more += f',"token_ids":{ids}'
            if is_first:
                more += f',"prompt_token_ids":{choice.prompt.ids}'
        if is_one_of_many:
            more += f',"rill":{self._rill(piece, False)}'
        logprobs = piece.logprobs.json if piece.logprobs else "null"
        finish = f'"{piece.finish}"' if piece.finish else "null"
        return f'{{"index":{index},"text":{quoted(piece.text)},"logprobs":{logprobs},"finish_reason":{finish}{more}}}'

    def _rill(self, piece: Piece | None, names_model: bool) -> str:
        """Return what only Rill knows: a seed as a text, since JavaScript has no larger number than 2^53."""
        model, parts = self._job.model, []
        if names_model:
            parts = [f'"model_id":"{model.model_id}"', f'"numerics":{quoted(model.numerics)}']
        if piece:
            if piece.seed is not None:
                parts.append(f'"seed":"{piece.seed}"')
            parts.append(f'"position":{piece.position}')
            if not model.vocabulary.are_characters:
                parts.append(f'"text_position":{piece.text_position}')
            if piece.matches is not None:
                parts.append(f'"matches":{"true" if piece.matches else "false"}')
            if piece.token:
                parts.append(f'"resume_token":"{encoded_token(piece.token)}"')
        return f"{{{','.join(parts)}}}"

    def _usage(self) -> str:
        prompt = sum(prompt.count for prompt in self._prompts)
        generated = sum(choice.generated for choice in self._choices)
        return f'{{"prompt_tokens":{prompt},"completion_tokens":{generated},"total_tokens":{prompt + generated}}}'

    def _usage_event(self) -> bytes:
        if not self._job.completion.include_usage:
            return b""
        return f'data: {self._head}],"usage":{self._usage()}}}\n\n'.encode()


def _is_full(error: Exception) -> bool:
    return isinstance(error, ServerError) and is_full(error)


class _Answer:
    """A choice's pieces as one."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self._texts: list[str] = []
        self._last = Piece(choice, "")
        self._logprobs: LogprobLists | None = None
        self._seed: int | None = None
        self._echoed = 0
        self._lengths: list[int] = []

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self._texts.append(piece.text)
        if piece.logprobs and self._logprobs:
            self._logprobs.extend(piece.logprobs)
        elif piece.logprobs:
            self._logprobs = piece.logprobs
        if piece.seed is not None:
            self._seed = piece.seed
        self._echoed += piece.echoed
        self._lengths += piece.lengths
        self._last = piece

    @property
    def whole(self) -> Piece:
        """All pieces."""
        last, text = self._last, "".join(self._texts)
        return Piece(
            self.choice,
            text,
            self._logprobs,
            last.token,
            last.position,
            self._seed,
            last.finish,
            self._echoed,
            last.text_position,
            self._lengths,
            last.matches,
        )
