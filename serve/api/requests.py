"""From a request, and the resume token that it may have, to an order; whatever has no meaning is named."""

import secrets
from dataclasses import replace
from typing import Any

import numpy as np

from rill.sampling import Sampling, SamplingError
from rill.serve.api.resume_tokens import MOST_STOPS, Resumption
from rill.serve.config import ServerConfig
from rill.serve.engine.text_codec import GivenText, LongPrompt
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import RequestError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import UnknownCharacterError

STOP_CHARACTERS = 10_000  # of all stop strings together; what may become one is held back, and held in memory
ALTERNATIVES = 20  # as many as the serving graph gives
DEFAULT = Sampling()


def spec_of(
    request: pb.GenerateRequest,
    resumption: Resumption | None,
    model: Model,
    config: ServerConfig,
    prompt: GivenText | None = None,
) -> StreamSpec:
    """What to generate. Raises RequestError for a field without meaning.

    `prompt` is that of the request if it has been checked already.
    """
    if not 0 <= request.chars_per_second < float("inf"):
        raise RequestError(
            "chars_per_second", f"chars_per_second must be a finite number >= 0, not {request.chars_per_second}"
        )
    if request.max_chars >= 2**62:
        raise RequestError("max_chars", "max_chars must be below 2^62; 0 means no limit")
    if config.max_chars and request.max_chars > config.max_chars:
        raise RequestError(
            "max_chars", f"max_chars is {request.max_chars}; this server generates {config.max_chars} characters a call"
        )
    if request.logprobs > ALTERNATIVES:
        raise RequestError("logprobs", f"logprobs must be at most {ALTERNATIVES} alternatives, not {request.logprobs}")
    spec = StreamSpec(
        prompt=_long_prompt(prompt, resumption) if prompt else _prompt(request.prompt, resumption, model, config),
        prompt_chars=len(prompt or request.prompt),
        sampling=_sampling(request.sampling, resumption.sampling if resumption else DEFAULT, model),
        seed=_seed(request.sampling, resumption),
        max_chars=request.max_chars or config.max_chars,
        chars_per_second=request.chars_per_second,
        stops=_stops(request.stop),
        include_stop=request.include_stop,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        resume_every=request.resume_every,
    )
    if resumption is None:
        return spec
    stops = spec.stops or resumption.stops
    goes_on = stops == resumption.stops and not spec.prompt_chars  # so that a stop may be complete which had begun
    return replace(
        spec,
        stops=stops,
        include_stop=request.include_stop or (resumption.include_stop and not spec.stops),
        partial_stop=resumption.snapshot.partial_stop if goes_on else "",
        position=resumption.snapshot.position,
        state=resumption.snapshot.state,
    )


def _prompt(text: str, resumption: Resumption | None, model: Model, config: ServerConfig) -> Any:
    """The ids that the model reads first: from a token on, its last character is still to be read."""
    if not (text or resumption):
        return np.array([model.bundle.vocabulary.start_id])
    if len(text) > config.max_prompt:
        raise RequestError("prompt", f"the prompt has {len(text)} characters; this server takes {config.max_prompt}")
    try:
        ids = model.codec.encode(text)
    except UnknownCharacterError as error:
        raise RequestError("prompt", f"prompt: {error}") from None
    if resumption:
        return np.concatenate([[resumption.snapshot.token], ids])
    return ids


def _long_prompt(text: GivenText, resumption: Resumption | None) -> LongPrompt:
    return LongPrompt(np.array([resumption.snapshot.token] if resumption else [], np.int64), text)


def _seed(message: pb.Sampling, resumption: Resumption | None) -> int:
    if message.HasField("seed"):
        return message.seed
    return resumption.seed if resumption else secrets.randbits(53)  # exact in JSON too


def _sampling(message: pb.Sampling, base: Sampling, model: Model) -> Sampling:
    """The parameters that the message sets, and those of `base` for the others."""
    names = ("temperature", "top_k", "top_p", "min_p")
    given: dict[str, Any] = {name: getattr(message, name) for name in names if message.HasField(name)}
    symbols = model.bundle.vocabulary
    bias = {}
    for character, value in message.logit_bias.items():
        if len(character) != 1:
            raise RequestError("sampling.logit_bias", f"logit_bias: {character!r} is not one character")
        symbol = symbols.id_of(character)
        if symbol is None:
            raise RequestError("sampling.logit_bias", f"logit_bias: {character!r} is not in the model's vocabulary")
        bias[symbol] = value
    if bias:
        banned = sum(value == float("-inf") for value in bias.values())
        if banned >= len(symbols) - (symbols.unknown_id is not None):
            raise RequestError("sampling.logit_bias", "logit_bias bans every character of the model")
        given["logit_bias"] = bias
    if given.get("top_k", 0) >= len(symbols):
        given["top_k"] = 0  # keeps all, and would sort them
    try:
        return replace(base, **given) if given else base
    except SamplingError as error:
        raise RequestError(f"sampling.{error.parameter}", str(error)) from None


def _stops(texts: Any) -> tuple[str, ...]:
    stops = tuple(dict.fromkeys(texts))
    if "" in stops:
        raise RequestError("stop", "a stop string must have at least one character")
    if len(stops) > MOST_STOPS:
        raise RequestError("stop", f"there are {len(stops)} stop strings; at most {MOST_STOPS} are looked for")
    if sum(map(len, stops)) > STOP_CHARACTERS:
        raise RequestError("stop", f"the stop strings have more than {STOP_CHARACTERS} characters in all")
    return stops
