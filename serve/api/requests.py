"""From the fields of a request, and the resume token that it may have, to a StreamSpec. Invalid fields are named."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rill.sampling import Sampling, SamplingError
from rill.serve.api.constraints import packed, pattern_of
from rill.serve.api.cutting import cut_text
from rill.serve.api.resume_tokens import MOST_STOPS, Resumption
from rill.serve.config import ServerConfig
from rill.serve.constraints.patterns import Pattern
from rill.serve.engine.text_codec import NO_SYMBOL, GivenText, Ids, LongPrompt
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import RequestError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import UnknownCharacterError, Vocabulary

NO_STOP = "\0"  # with it, which is in no text, sessions of clients replace the stop strings of a token
STOP_CHARACTERS = 10_000  # of all stop strings together: text that may become one is held back in memory
ALTERNATIVES = 20  # as many as the serving graph returns
CHECKED_AT_ONCE = 65_536  # characters: half a millisecond, in which the event loop can do nothing else
DEFAULT = Sampling()

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(slots=True)  # not frozen, which would take three times as long to make, for every call
class GenerateParameters:
    """What a request asks for, whichever message it arrived in. Defaults stand for fields that are not set."""

    model: str = ""
    resume_token: bytes = b""
    prompt: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)  # those of SAMPLING_FIELDS that are set
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    constraint: Pattern | None = None
    removes_constraint: bool = False  # of the token, or of the state
    max_chars: int = 0
    stops: Iterable[str] = ()
    include_stop: bool = False
    logprobs: int | None = None
    chars_per_second: float = 0.0
    resume_every: int = 0


def parameters_of(
    message: pb.GenerateRequest | pb.ScoreRequest | pb.InteractRequest.Open | pb.InteractRequest.Generate | pb.Sampling,
) -> GenerateParameters:
    """Read the parameters from a message; no other code reads them. Raises RequestError for a bad constraint."""
    match message:
        case pb.GenerateRequest():
            sampling = message.sampling
            constraint, removes_constraint = _constraint(sampling)
            return GenerateParameters(
                model=message.model,
                resume_token=message.resume_token,
                prompt=message.prompt,
                sampling=_given(sampling),
                logit_bias=sampling.logit_bias,
                seed=sampling.seed if sampling.HasField("seed") else None,
                constraint=constraint,
                removes_constraint=removes_constraint,
                max_chars=message.max_chars,
                stops=message.stop,
                include_stop=message.include_stop,
                logprobs=message.logprobs if message.HasField("logprobs") else None,
                chars_per_second=message.chars_per_second,
                resume_every=message.resume_every,
            )
        case pb.InteractRequest.Generate():
            return GenerateParameters(
                max_chars=message.max_chars,
                stops=message.stop,
                include_stop=message.include_stop,
                logprobs=message.logprobs if message.HasField("logprobs") else None,
                chars_per_second=message.chars_per_second,
            )
        case pb.InteractRequest.Open():
            parameters = parameters_of(message.sampling)
            parameters.model, parameters.resume_token = message.model, message.resume_token
            return parameters
        case pb.ScoreRequest():
            return GenerateParameters(message.model, message.resume_token)
        case _:
            seed = message.seed if message.HasField("seed") else None
            constraint, removes_constraint = _constraint(message)
            return GenerateParameters(
                sampling=_given(message),
                logit_bias=message.logit_bias,
                seed=seed,
                constraint=constraint,
                removes_constraint=removes_constraint,
            )


def _given(message: pb.Sampling) -> dict[str, Any]:
    return {name: getattr(message, name) for name in SAMPLING_FIELDS if message.HasField(name)}


def _constraint(message: pb.Sampling) -> tuple[Pattern | None, bool]:
    """Return the constraint, and whether an empty one removes that of the token."""
    if not message.HasField("constraint"):
        return None, False
    pattern = pattern_of(message.constraint)
    return pattern, pattern is None


async def spec_of(
    parameters: GenerateParameters, resumption: Resumption | None, model: Model, config: ServerConfig
) -> StreamSpec:
    """Return the stream that is requested, which may be the rest of another. Raises RequestError for invalid fields.

    A constraint that is new, or from a token, has no automaton yet: `rill.serve.api.constraints` compiles it.
    """
    rate, alternatives = parameters.chars_per_second, parameters.logprobs
    if not 0 <= rate < float("inf"):
        raise RequestError("chars_per_second", f"chars_per_second must be a finite number >= 0, not {rate}")
    if parameters.max_chars >= 2**62:
        raise RequestError("max_chars", "max_chars must be below 2^62; 0 means no limit")
    if config.max_chars and parameters.max_chars > config.max_chars:
        raise RequestError(
            "max_chars", f"max_chars is {parameters.max_chars}; the limit of this server is {config.max_chars}"
        )
    _check_alternatives(alternatives, "logprobs")
    text = await cut_text(parameters.prompt, model, config.max_prompt, "prompt") if parameters.prompt else ""
    ids = await check_text(text, model, config.max_prompt, "prompt") if text else None
    spec = StreamSpec(
        prompt=_prompt(text, ids, resumption, model),
        prompt_chars=len(text),
        sampling=_sampling(parameters, resumption.sampling if resumption else DEFAULT, model),
        seed=_seed(parameters, resumption),
        max_chars=parameters.max_chars or config.max_chars,
        chars_per_second=rate,
        stops=await _stops(parameters.stops, model),
        include_stop=parameters.include_stop,
        logprobs=alternatives,
        resume_every=parameters.resume_every,
        constraint=packed(parameters.constraint) if parameters.constraint else b"",
    )
    if resumption is None:
        return spec
    stops = spec.stops or resumption.stops
    # A stop string that had begun can become complete, unless other text or other stops intervene.
    keeps_partial_stop = stops == resumption.stops and not spec.prompt_chars
    keeps_constraint = not (parameters.constraint or parameters.removes_constraint)
    return replace(
        spec,
        stops=stops,
        include_stop=spec.include_stop or (resumption.include_stop and not spec.stops),
        partial_stop=resumption.snapshot.partial_stop if keeps_partial_stop else "",
        position=resumption.snapshot.position,
        text_position=resumption.snapshot.text_position,
        state=resumption.snapshot.state,
        constraint=resumption.constraint if keeps_constraint else spec.constraint,
        automaton=resumption.automaton if keeps_constraint else None,
        automaton_state=resumption.snapshot.automaton_state if keeps_constraint else 0,
    )


async def score_spec_of(
    request: pb.ScoreRequest, text: str, spec: StreamSpec, model: Model, config: ServerConfig
) -> StreamSpec:
    """Return the stream that reads `text`, that of `request`, where `spec` would begin to generate.

    `text` is coded. What is read first, without a log-probability, is its prompt. Raises RequestError for invalid
    fields.
    """
    alternatives = request.top_logprobs if request.HasField("top_logprobs") else None
    _check_alternatives(alternatives, "top_logprobs")
    await check_text(text, model, config.max_score_chars, "text")
    spec = replace(spec, logprobs=alternatives)
    if request.as_prompt and text and not (request.resume_token or model.bundle.vocabulary.start):
        return replace(spec, prompt=model.codec.encode(text[0]), prompt_chars=1)
    return spec


def require_end(request: pb.ScoreRequest, model: Model) -> None:
    """Raise RequestError if the end of a text is to be scored by a model that has no end symbol."""
    if request.include_end and not model.bundle.vocabulary.ends:
        raise RequestError("include_end", f"include_end: model {model.bundle.name!r} has no end symbol")


def _check_alternatives(count: int | None, field: str) -> None:
    if count and count > ALTERNATIVES:
        raise RequestError(field, f"{field} must be at most {ALTERNATIVES} alternatives, not {count}")


async def check_text(text: str, model: Model, most: int, field: str) -> Ids | None:
    """Check that `model` can read coded `text`; return its ids, or None for a long text, which is encoded in parts.

    Raises RequestError if the text has more than `most` characters, or one that the vocabulary lacks.
    """
    if len(text) > most:
        raise RequestError(field, f"{field} has {len(text)} characters; the limit of this server is {most}")
    try:
        if len(text) <= CHECKED_AT_ONCE:
            return model.codec.encode(text)
        given = GivenText(text, model.codec)
        for start in range(0, len(text), CHECKED_AT_ONCE):
            given.ids(start, start + CHECKED_AT_ONCE)
            await asyncio.sleep(0)  # other calls may have waited
    except UnknownCharacterError as error:
        raise RequestError(field, f"{field}: {error}") from None
    return None


def _prompt(text: str, ids: Ids | None, resumption: Resumption | None, model: Model) -> Ids | LongPrompt:
    """Return the ids that the model reads first: after a token, its last character is still to be read."""
    vocabulary = model.bundle.vocabulary
    if not text:
        return np.array([resumption.snapshot.token if resumption else vocabulary.start_id])
    first = [resumption.snapshot.token] if resumption else [vocabulary.start_id] if vocabulary.start else []
    if ids is None:
        return LongPrompt(np.array(first, np.int64), GivenText(text, model.codec))
    return np.concatenate([first, ids]) if first else ids


def _seed(parameters: GenerateParameters, resumption: Resumption | None) -> int:
    if parameters.seed is not None:
        return parameters.seed
    return resumption.seed if resumption else secrets.randbits(53)  # exact in JSON, too


def _sampling(parameters: GenerateParameters, base: Sampling, model: Model) -> Sampling:
    """Return the parameters that are set, and those of `base` for the others."""
    changes, vocabulary, bias = parameters.sampling, model.bundle.vocabulary, {}
    for text, value in parameters.logit_bias.items():
        bias[_biased_symbol(text, vocabulary)] = value
    if bias:
        banned = sum(value == float("-inf") for value in bias.values())
        if banned >= len(vocabulary) - len(vocabulary.never_ids):
            raise RequestError("sampling.logit_bias", "logit_bias bans every character of the model")
        changes = {**changes, "logit_bias": bias}
    if changes.get("top_k", 0) >= len(vocabulary):
        changes = {**changes, "top_k": 0}  # it would keep all characters, and sort them
    try:
        return replace(base, **changes) if changes else base
    except SamplingError as error:
        raise RequestError(f"sampling.{error.parameter}", str(error)) from None


def _biased_symbol(text: str, vocabulary: Vocabulary) -> int:
    """Return the id of a symbol that a model may choose, by its text; an end symbol is one."""
    symbol = vocabulary.id_of(text)
    if symbol is not None and symbol not in vocabulary.never_ids:
        return symbol
    if vocabulary.are_characters and len(text) != 1:
        raise RequestError("sampling.logit_bias", f"logit_bias: {text!r} is not one character")
    if symbol is not None:
        raise RequestError("sampling.logit_bias", f"logit_bias: the model never chooses {text!r}")
    what = "is not in the model's vocabulary" if vocabulary.are_characters else "is not one symbol of the model"
    raise RequestError("sampling.logit_bias", f"logit_bias: {text!r} {what}")


async def _stops(texts: Iterable[str], model: Model) -> tuple[str, ...]:
    """Return the stop strings as coded text."""
    stops = tuple(dict.fromkeys(texts))
    if "" in stops:
        raise RequestError("stop", "a stop string must have at least one character")
    if len(stops) > MOST_STOPS:
        raise RequestError("stop", f"there are {len(stops)} stop strings; the limit is {MOST_STOPS}")
    if sum(map(len, stops)) > STOP_CHARACTERS:
        raise RequestError("stop", f"the stop strings have more than {STOP_CHARACTERS} characters in total")
    if stops and not model.codec.is_text:
        return tuple([await _coded_stop(stop, model) for stop in stops])
    return stops


async def _coded_stop(stop: str, model: Model) -> str:
    """Return a stop string as coded text."""
    if stop == NO_STOP and model.bundle.vocabulary.id_of(stop) is None:
        return NO_SYMBOL
    return await cut_text(stop, model, STOP_CHARACTERS, "stop")
