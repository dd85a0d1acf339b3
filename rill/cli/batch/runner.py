"""What `rill batch` does between its input and its output: generate many texts at once, each to its end.

As many texts as there are streams are generated at a time, and a line of the input is read when one of them is
complete: memory grows neither with the input nor with the output.
"""

import asyncio
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from math import fsum
from typing import Any, NamedTuple

import grpc

from rill.cli.batch.input import Prompt
from rill.cli.batch.output import BatchOutput
from rill.cli.models import find_generator
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.client.requests import finish_reason, matches
from rill.client.retry import Backoff, is_full
from rill.client.samples import TooOldForSamplesError, may_be_sampled, with_seeds
from rill.client.security import PLAIN, Security
from rill.client.symbols import symbol_count
from rill.v1 import rill_pb2 as pb

FIRST_WAIT, LONGEST_WAIT = 0.5, 5.0  # seconds, until a text is requested again that found no free slot

SAMPLES_AT_ONCE = 32  # of a call, which costs as much as several short texts

OnCharacters = Callable[[int], None]


class RefusedError(ValueError):
    """A prompt was refused: for example, it has a character that the model does not know."""


class GeneratedText(NamedTuple):
    """A whole text; `finish_reason` is LENGTH or STOP, `chars` counts symbols of the model.

    `logprob` is the sum of their log-probabilities in nats, if the request asks for log-probabilities; `matches` says
    whether the text matches its constraint, if it has one.
    """

    text: str
    finish_reason: str
    chars: int
    logprob: float | None = None
    matches: bool | None = None


class Servers:
    """Running servers of one model, which share the texts; each continues those of another one that is lost.

    `model` is its name there, empty for the first server's first; call `served_model` before `text`. A text that finds
    no free slot is requested again and again; one that no server can be reached for in `retry_seconds`
    (`connect_seconds` while none has answered) is a ServerError.
    Made and used on one event loop.
    """

    def __init__(
        self,
        target: str,
        model: str,
        retry_seconds: float,
        security: Security = PLAIN,
        connect_seconds: float | None = None,
    ) -> None:
        addresses = target.split(",")
        self._model = model
        # A client calls its first address as long as it is there.
        self._clients = [
            AsyncClient(
                ",".join(addresses[at:] + addresses[:at]),
                retry_seconds=retry_seconds,
                connect_seconds=connect_seconds,
                security=security,
            )
            for at in range(len(addresses))
        ]
        self._turns = cycle(self._clients)
        self.capacity = 0  # texts that the servers generate at once; 0: not known

    async def served_model(self) -> pb.ModelInfo:
        """Return the model as the servers that can be reached have it.

        Raises ServerError; ValueError if they have no such model, different ones, or one that generates no text.
        """
        found, self.capacity = [], 0
        for client in self._clients:
            served = await client.models()
            found.append(find_generator(served, self._model))
            self._model = found[0].name
            self.capacity += served.max_streams
        if len({info.model_id for info in found}) > 1:
            raise ValueError(f"the servers have different models named {self._model!r}")
        return found[0]

    async def text(self, request: pb.GenerateRequest, on_characters: OnCharacters) -> GeneratedText:
        """Generate a text; `on_characters` gets the number of new characters as they arrive.

        Raises RefusedError, and ServerError for what is not the request's fault.
        """
        request.model = self._model
        client, backoff = next(self._turns), Backoff(FIRST_WAIT, LONGEST_WAIT)
        while True:
            parts, reason, chars, usage = [], pb.FINISH_REASON_UNSPECIFIED, 0, pb.Usage()
            logprobs = array("f") if request.HasField("logprobs") else None
            try:
                async for message in client.stream(request):
                    parts.append(message.text)
                    reason, usage = message.finish_reason, message.usage
                    count = symbol_count(message)
                    chars += count
                    on_characters(count)
                    if logprobs is not None:
                        logprobs.extend(entry.logprob for entry in message.logprobs)
                logprob = None if logprobs is None else fsum(logprobs)  # exact, however the entries arrive
                return GeneratedText("".join(parts), finish_reason(reason), chars, logprob, matches(usage))
            except ServerError as error:
                if _is_refusal(error):
                    raise RefusedError(str(error)) from None
                if not is_full(error):  # the client has tried for as long as it may
                    raise
                wait = backoff.next(error.retry_seconds)
            await asyncio.sleep(wait)

    async def samples(
        self, request: pb.GenerateRequest, seeds: Sequence[int], on_sample: Callable[[int, GeneratedText], None]
    ) -> None:
        """Generate a text with each of `seeds`; `on_sample` gets each text, and the index of its seed, in order.

        Raises as `text` does, and TooOldForSamplesError.
        """
        request = with_seeds(request, seeds)
        request.model = self._model
        client, backoff, known = next(self._turns), Backoff(FIRST_WAIT, LONGEST_WAIT), 0
        while True:
            try:
                async for message in client.samples(request):
                    for sample in message.samples:
                        on_sample(known, _generated(sample))
                        known += 1
                return
            except ServerError as error:
                if _is_refusal(error):
                    raise RefusedError(str(error)) from None
                if not is_full(error):
                    raise
                wait = backoff.next(error.retry_seconds)
            del request.seeds[: len(request.seeds) - (len(seeds) - known)]
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()


class Batch:
    """The texts of `prompts`, up to `streams` of them at a time, written to `output`.

    `characters` counts all that have arrived, those of incomplete texts included. With `refusals_end_it`, the first
    prompt that is refused ends the run: all are the same.
    """

    def __init__(
        self,
        servers: Servers,
        prompts: Iterator[Prompt],
        output: BatchOutput,
        streams: int,
        refusals_end_it: bool = False,
    ) -> None:
        self._servers, self._prompts, self._output, self._streams = servers, prompts, output, streams
        self._refusals_end_it = refusals_end_it
        self._left = output.left
        self._next: Prompt | None = None  # that was read, and is of another call
        self._may_share = True  # False: a server does not know calls with several texts
        self.characters = 0

    async def run(self) -> None:
        """Generate all of them. Raises PromptError, ServerError, RefusedError or OSError, of the first failure."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._streams):
                    group.create_task(self._generate_in_turn())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _generate_in_turn(self) -> None:
        while prompts := self._take():
            if len(prompts) > 1:
                prompts = await self._share(prompts)
            for prompt in prompts:
                try:
                    self._add(prompt, await self._servers.text(prompt.request, self._on_characters))
                except RefusedError as error:
                    self._refuse(prompt, error)

    def _take(self) -> list[Prompt]:
        """Take the next prompts that share a call; fewer towards the end, so that all calls end at about one time."""
        first = self._next or next(self._prompts, None)
        self._next = None
        if first is None:
            return []
        prompts = [first]
        if first.shared and self._may_share and may_be_sampled(first.request):
            calls = min(self._streams, self._servers.capacity or self._streams)
            most = min(SAMPLES_AT_ONCE, self._left // (2 * calls))
            while len(prompts) < most and (prompt := next(self._prompts, None)):
                if prompt.shared is not first.shared:
                    self._next = prompt
                    break
                prompts.append(prompt)
        self._left -= len(prompts)
        return prompts

    async def _share(self, prompts: list[Prompt]) -> list[Prompt]:
        """Generate texts in one call; returns those that a server has to be asked for one by one."""
        known = 0

        def on_sample(index: int, made: GeneratedText) -> None:
            nonlocal known
            self._on_characters(made.chars)
            self._add(prompts[index], made)
            known += 1

        try:
            await self._servers.samples(prompts[0].request, [p.request.sampling.seed for p in prompts], on_sample)
        except TooOldForSamplesError:
            self._may_share = False
            return prompts[known:]
        except RefusedError as error:
            for prompt in prompts[known:]:
                self._refuse(prompt, error)
        return []

    def _add(self, prompt: Prompt, made: GeneratedText) -> None:
        """Write a text."""
        fields = {"text": made.text, "chars": made.chars, "finish_reason": made.finish_reason}
        more = {"matches": made.matches, "logprob": made.logprob}
        fields |= {name: value for name, value in more.items() if value is not None}
        self._output.add(prompt.line, _of(prompt) | fields)

    def _refuse(self, prompt: Prompt, error: RefusedError) -> None:
        """Write why there is no text, or raise the error."""
        if self._refusals_end_it:
            raise error
        self._output.add(prompt.line, _of(prompt) | {"error": str(error)})

    def _on_characters(self, count: int) -> None:
        self.characters += count


def _of(prompt: Prompt) -> dict[str, Any]:
    """Return what is written of a text whether there is one or not."""
    fields: dict[str, Any] = {"id": prompt.id}
    if prompt.sample is not None:
        fields["index"] = prompt.sample
    fields["seed"] = prompt.request.sampling.seed
    return fields


def _generated(sample: pb.Sample) -> GeneratedText:
    logprob = sample.logprob if sample.HasField("logprob") else None
    does_match = sample.matches if sample.HasField("matches") else None
    return GeneratedText(sample.text, finish_reason(sample.finish_reason), sample.chars, logprob, does_match)


def _is_refusal(error: ServerError) -> bool:
    """Tell whether the request is at fault, and not the moment. One that is too large to receive is."""
    too_large = (
        error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.origin is Origin.SERVER and not is_full(error)
    )
    return error.code is grpc.StatusCode.INVALID_ARGUMENT or too_large
