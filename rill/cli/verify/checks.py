"""The checks of `rill verify`: are the texts of a model the same, however they are generated?

Some texts are read alone, then again: alone, in a crowd, in messages of other sizes, from resume tokens of one server
on the other, and several times from one token. Calls are plain gRPC calls: nothing here reconnects or repairs.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from rill.cli.models import has_characters
from rill.client.errors import ServerError
from rill.client.symbols import checked_lengths, symbols_of
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary

CALL_SECONDS = 300.0  # at most, for one text
SHORT_PROMPT, LONG_PROMPT = 10, 1000  # symbols
MOST_DRAWS = 100  # of prompts that cannot be cut as they are joined
LINKS = 5  # of a chain of resumed texts, about
PAUSES, PAUSE_SECONDS = 20, 0.01  # of the slow reader, after each of its first messages
LOGPROB_TOLERANCE = 1e-3  # nats: rounding differs in the last places, and by far less than this
EXCERPT = 20  # symbols to each side of a difference
GAP = 7  # symbols at most between two that a constrained text must have

Json = dict[str, Any]


class VerifyError(Exception):
    """A model cannot be verified: a server does not have it, or ends a call with an error."""


@dataclass(frozen=True)
class Case:
    """A text that is read in several ways; `request` gives all of it but its length."""

    name: str
    request: pb.GenerateRequest


@dataclass
class ReceivedText:
    """What a server sent; `token` is the last resume token, after `token_at` symbols. A text may end by itself."""

    symbols: list[str] = field(default_factory=list)
    is_ended: bool = False
    logprobs: list[float] = field(default_factory=list)
    token: bytes = b""
    token_at: int = 0


@dataclass(frozen=True)
class Sample:
    """A text that should be symbols `start` to `end` of its case's; `way` says how it was generated."""

    case: Case
    way: str
    text: ReceivedText
    start: int
    end: int


@dataclass(frozen=True)
class Subject:
    """A model on some servers whose texts must all be the same."""

    info: pb.ModelInfo
    servers: Mapping[str, TextGenerationStub]  # by HOST:PORT; at least one
    chars: int
    streams: int
    takes_constraints: bool = False  # the bundle has graphs for them on all servers

    def stub(self, number: int) -> TextGenerationStub:
        """Return the servers in turn."""
        return list(self.servers.values())[number % len(self.servers)]


@dataclass(frozen=True)
class Finding:
    """The result of one check: `differences` has a sentence for each text that differs."""

    check: str
    texts: int
    characters: int
    differences: list[str]
    logprob_difference: float  # the largest, in nats
    seconds: float


def cases_of(info: pb.ModelInfo, takes_constraints: bool = False) -> list[Case]:
    """Choose the texts that are read of a model; prompts and biases have symbols that it knows.

    Texts of a model with end symbols would be short: all but those of one case never end, nor does the constraint of
    two more, where the model takes one. Raises VerifyError.
    """
    draw = random.Random(7)
    short, long = _prompt(info, draw, SHORT_PROMPT), _prompt(info, draw, LONG_PROMPT)
    letters, ends = _letters(info), list(info.end_symbols)
    endless = dict.fromkeys(ends, float("-inf"))
    bias = dict.fromkeys(letters[-1:], 1.5) | dict.fromkeys(letters[:1] if len(letters) > 1 else [], float("-inf"))
    parameters: list[tuple[str, str, Json, Json]] = [
        ("plain", "", {}, {}),
        ("greedy", short, {"temperature": 0.0}, {}),
        ("top-p", short, {"top_p": 0.9, "temperature": 0.9}, {}),
        ("top-k and min-p", short, {"top_k": 20, "min_p": 0.02}, {}),
        ("logit bias", short, {"logit_bias": bias}, {}),
        ("long prompt", long, {"temperature": 1.2}, {}),
        ("logprobs", short, {"temperature": 0.8}, {"logprobs": 2}),
    ]
    more: list[tuple[str, str, Json, Json]] = [("end", "", {}, {"logprobs": 2})] if ends else []
    if takes_constraints and (rule := constraint_of(info)):
        constrained = {"constraint": rule, "temperature": 1.1}
        more.append(("constraint", short, constrained, {}))
        more.append(("constraint and logprobs", short, {**constrained, "top_k": 20}, {"logprobs": 2}))
    cases = []
    for seed, (name, prompt, sampling, rest) in enumerate([*parameters, *more], 1):
        request = pb.GenerateRequest(
            model=info.name, prompt=prompt, sampling=pb.Sampling(seed=seed, **sampling), **rest
        )
        if seed <= len(parameters):
            request.sampling.logit_bias.update(endless)
        cases.append(Case(name, request))
    return cases


def constraint_of(info: pb.ModelInfo) -> pb.Constraint | None:
    """Return a constraint whose texts never end: one letter must come again and again. None if no letter can be it."""
    letter = next((symbol for symbol in reversed(_letters(info)) if len(symbol) == 1 and symbol != "\n"), None)
    if letter is None:
        return None
    return pb.Constraint(regex=f"(?:.{{0,{GAP}}}{re.escape(letter)})*", terminator="")


def _letters(info: pb.ModelInfo) -> list[str]:
    """Return the symbols that a text may have."""
    special = {UNKNOWN, info.start_symbol, *info.end_symbols}
    return [symbol for symbol in info.vocabulary if symbol not in special]


def _prompt(info: pb.ModelInfo, draw: random.Random, count: int) -> str:
    """Draw a text of about so many symbols, which the model can read. Raises VerifyError."""
    letters, text = _letters(info), ""
    if not letters or has_characters(info):
        return "".join(draw.choices(letters, k=count)) if letters else ""
    try:
        vocabulary = Vocabulary(tuple(info.vocabulary), info.tokenizer, info.start_symbol, tuple(info.end_symbols))
    except ValueError as error:
        raise VerifyError(f"the vocabulary of {info.name}: {error}") from None
    for _ in range(MOST_DRAWS):  # joined symbols may be cut elsewhere, and then in the end not at all
        try:
            missing = count - len(vocabulary.encode(text))
            if missing <= 0:
                break
            text += "".join(draw.choices(letters, k=missing))
        except UnknownCharacterError as error:
            text = text[: error.position]
    return text


def _with(case: Case, max_chars: int, token: bytes = b"", **fields: Any) -> pb.GenerateRequest:
    """Make the case's request, or one that continues from a token, which has the prompt, seed and parameters."""
    request = pb.GenerateRequest(max_chars=max_chars, resume_token=token, **fields)
    if not token:
        request.MergeFrom(case.request)
        return request
    request.model = case.request.model
    if case.request.HasField("logprobs"):
        request.logprobs = case.request.logprobs
    return request


async def _read(
    stub: TextGenerationStub, request: pb.GenerateRequest, pause: float = 0.0, enough: int | None = None
) -> ReceivedText:
    """Read one call's text, to its end or to the first token after `enough` characters. Raises grpc.RpcError."""
    text, pauses = ReceivedText(), 0
    call = stub.Generate(request, timeout=CALL_SECONDS)
    async for message in call:
        try:
            text.symbols += symbols_of(message.text, checked_lengths(message))
        except ServerError as error:
            raise VerifyError(str(error)) from None
        text.is_ended = message.finish_reason == pb.FINISH_REASON_STOP
        text.logprobs += [entry.logprob for entry in message.logprobs]
        if message.resume_token:
            text.token, text.token_at = message.resume_token, len(text.symbols)
        if enough is not None and text.token_at >= enough:
            call.cancel()
            break
        if pause and pauses < PAUSES:
            pauses += 1
            await asyncio.sleep(pause)
    return text


async def _alone(subject: Subject, cases: Sequence[Case]) -> list[Sample]:
    """Read the texts one after the other on an idle server."""
    return [
        Sample(case, "alone", await _read(subject.stub(0), _with(case, subject.chars)), 0, subject.chars)
        for case in cases
    ]


async def _crowd(subject: Subject, cases: Sequence[Case]) -> list[Sample]:
    """Read the texts at once, while other streams begin and end; those with a case's seed are compared as well."""
    samples: list[Sample] = []
    end = max(subject.chars // 2, 1)  # a crowd is slow
    visitors = [
        asyncio.create_task(_visits(subject, cases, number, samples.append)) for number in range(subject.streams)
    ]
    try:
        texts = await asyncio.gather(*(_read(subject.stub(0), _with(case, end)) for case in cases))
    finally:
        for visitor in visitors:
            visitor.cancel()
        ends = await asyncio.gather(*visitors, return_exceptions=True)
    for error in ends:
        if isinstance(error, Exception):
            raise error
    return samples + [Sample(case, "in a crowd", text, 0, end) for case, text in zip(cases, texts, strict=True)]


async def _visits(subject: Subject, cases: Sequence[Case], number: int, record: Callable[[Sample], None]) -> None:
    """Read short texts of all kinds, one after the other, until cancelled."""
    draw = random.Random(number)
    while True:
        case, count = draw.choice(cases), draw.randint(1, max(subject.chars // 4, 1))
        request = _with(case, count, resume_every=draw.choice([0, 0, 50]))
        known = draw.random() < 0.5
        if not known:
            request.sampling.seed = draw.getrandbits(32)
        if draw.random() < 0.2:
            request.chars_per_second = 2.0 * subject.chars
        enough = draw.choice([None, count // 2])
        try:
            text = await _read(subject.stub(0), request, enough=enough)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # a server may be full with fewer streams
                raise
            await asyncio.sleep(0.1)
            continue
        if known:
            record(Sample(case, "of the crowd", text, 0, count if enough is None else len(text.symbols)))


async def _chunked(subject: Subject, cases: Sequence[Case]) -> list[Sample]:
    """Read the texts in rounds and messages of other sizes, on the second server, one after the other."""
    whole, part = subject.chars, max(subject.chars // 4, 1)  # a text of many messages is slow, so it is shorter
    ways: list[tuple[str, int, Json, float]] = [
        ("in other rounds", whole, {}, 0.0),
        ("with resume_every 100", part, {"resume_every": 100}, 0.0),
        ("with resume_every 7", part, {"resume_every": 7}, 0.0),
        ("with resume_every 1", part, {"resume_every": 1}, 0.0),
        ("paced", part, {"chars_per_second": 2.0 * whole}, 0.0),
        ("for a slow reader", part, {"resume_every": 1}, PAUSE_SECONDS),
    ]
    return [
        Sample(case, way, await _read(subject.stub(1), _with(case, end, **fields), pause), 0, end)
        for case in cases
        for way, end, fields, pause in ways
    ]


async def _resumed(subject: Subject, cases: Sequence[Case]) -> list[Sample]:
    """Read the texts in chains of calls, each on the other server."""
    return [Sample(case, "resumed", await _chain(subject, case), 0, subject.chars) for case in cases]


async def _chain(subject: Subject, case: Case) -> ReceivedText:
    """Read a text cut at random places: every other call is broken off, and continued from the last token."""
    whole = ReceivedText()
    cuts = sorted(random.Random(case.name).sample(range(1, subject.chars), min(LINKS - 1, subject.chars - 1)))
    for link, cut in enumerate([*cuts, subject.chars]):
        wanted = cut - len(whole.symbols)
        if wanted <= 0:
            continue
        if link % 2 and cut < subject.chars:
            request, enough = _with(case, subject.chars - len(whole.symbols), whole.token, resume_every=7), wanted
        else:
            request, enough = _with(case, wanted, whole.token), None
        part = await _read(subject.stub(link), request, enough=enough)
        if not part.token:
            raise VerifyError(f"{case.name}: the server issued no resume token")
        whole.symbols += part.symbols[: part.token_at]
        whole.logprobs += part.logprobs[: part.token_at]
        whole.token, whole.is_ended = part.token, part.is_ended
        if whole.is_ended:
            break
    return whole


async def _forked(subject: Subject, cases: Sequence[Case]) -> list[Sample]:
    """Use one token three times, on both servers."""
    samples, part = [], max(subject.chars // 4, 1)
    for case in cases:
        cut = random.Random(f"{case.name} forked").randint(1, subject.chars - part)
        head = await _read(subject.stub(0), _with(case, cut))
        if not head.token:
            raise VerifyError(f"{case.name}: the server issued no resume token")
        for use, server in enumerate((0, 0, 1), 1):
            fork = await _read(subject.stub(server), _with(case, part, head.token))
            at = len(head.symbols)
            samples.append(Sample(case, f"in use {use} of a token", fork, at, at + part))
    return samples


Check = Callable[[Subject, Sequence[Case]], Awaitable[list[Sample]]]
CHECKS: dict[str, Check] = {
    "alone": _alone,
    "crowd": _crowd,
    "chunked": _chunked,
    "resumed": _resumed,
    "forked": _forked,
}


async def with_constraints(subject: Subject) -> Subject:
    """Find out whether all servers have the graphs for constraints: earlier bundles do not. Raises VerifyError."""
    sampling = pb.Sampling(seed=1, constraint=constraint_of(subject.info))
    request = pb.GenerateRequest(model=subject.info.name, max_chars=1, sampling=sampling)
    for stub in subject.servers.values():
        try:
            messages = [message async for message in stub.Generate(request, timeout=CALL_SECONDS)]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return subject
            raise _ended_call(error) from None
        last = messages[-1] if messages else pb.GenerateResponse()
        if sampling.HasField("constraint") and not last.usage.HasField("matches"):  # an earlier server
            return subject
    return replace(subject, takes_constraints=True)


def _ended_call(error: grpc.aio.AioRpcError) -> VerifyError:
    return VerifyError(f"the server ended a call: {error.details()} ({error.code().name})")


async def findings_of(subject: Subject) -> AsyncIterator[Finding]:
    """Yield what each check finds, compared with the texts read first, alone. Raises VerifyError."""
    cases = cases_of(subject.info, subject.takes_constraints)
    try:
        firsts = {sample.case.name: sample.text for sample in await _alone(subject, cases)}
        for check, read in CHECKS.items():
            started = time.monotonic()
            samples = await read(subject, cases)
            yield _finding(check, samples, firsts, time.monotonic() - started)
    except grpc.aio.AioRpcError as error:
        raise _ended_call(error) from None


def _finding(check: str, samples: Sequence[Sample], firsts: Mapping[str, ReceivedText], seconds: float) -> Finding:
    compared = [_compare(sample, firsts[sample.case.name]) for sample in samples]
    return Finding(
        check=check,
        texts=len(samples),
        characters=sum(len(sample.text.symbols) for sample in samples),
        differences=[difference for difference, _ in compared if difference],
        logprob_difference=max((logprob for _, logprob in compared), default=0.0),
        seconds=seconds,
    )


def _compare(sample: Sample, first: ReceivedText) -> tuple[str | None, float]:
    """Say where a text differs from the first one, if it does, and by how much log-probabilities differ at most."""
    got, expected = sample.text, first.symbols[sample.start : sample.end]
    pairs = list(zip(got.logprobs, first.logprobs[sample.start : sample.end], strict=False))
    apart = max((abs(one - other) for one, other in pairs), default=0.0)
    named = f"{sample.case.name} {sample.way}"
    is_whole = len(expected) == sample.end - sample.start or (first.is_ended and got.is_ended)
    if got.symbols != expected or not is_whole:
        at = next(
            (at for at, (one, other) in enumerate(zip(got.symbols, expected, strict=False)) if one != other),
            min(len(got.symbols), len(expected)),
        )
        found, known = ("".join(symbols[max(at - EXCERPT, 0) : at + EXCERPT]) for symbols in (got.symbols, expected))
        return f"{named}: character {sample.start + at:,}: {found!r}, not {known!r}", apart
    if len(pairs) != (len(expected) if first.logprobs else 0):
        return f"{named}: only {len(pairs):,} of {len(expected):,} characters have log-probabilities", apart
    if not apart <= LOGPROB_TOLERANCE:
        return f"{named}: log-probabilities differ by {apart:.2g} nats", apart
    return None, apart
