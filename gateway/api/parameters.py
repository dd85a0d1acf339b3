"""The fields of `POST /v1/completions`: OpenAI's, vLLM's extensions, and Rill's own."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from rill.client import values
from rill.gateway.api.constraints import Requested, constraint_of
from rill.gateway.api.fields import Fields, shown, text, texts, whole
from rill.gateway.errors import FIELDS, ApiError
from rill.vocabulary import MAX_SYMBOL, Vocabulary

MAX_TOKENS = 16  # of a request that does not say: OpenAI's default
MOST_SAMPLES = 128
MOST_PROMPTS = 2048
MOST_TEXTS = 2048  # prompts times samples
MOST_STOPS = 32  # as in rill.proto; OpenAI allows 4
MOST_BIASES = 65_536
MOST_COLLECTED = 16_000_000  # bytes, about, that an answer may have which is not streamed
BAN = -100.0  # OpenAI's: a bias so low bans a symbol

# Fields that change nothing about a text here, whatever their values.
_WITHOUT_EFFECT = (
    *("user", "metadata", "service_tier", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens"),  # servers add and skip them
    *("request_id", "priority", "cache_salt"),
)
# Fields that would change a text in a way that is not possible here, and the values with which they do not.
_NO_PENALTIES = "is not supported: the model has no penalties"
_NOT_SUPPORTED = "is not supported"


@dataclass(frozen=True)
class Completion:
    """A request, checked as far as that is possible without the model. Counts are of symbols.

    prompts: texts, or lists of symbol ids.
    n, best_of: how many texts to answer with for each prompt, and of how many these are the best.
    bias: by the id of a symbol; minus infinity bans it.
    ignores_ends: whether end symbols are banned.
    constraint: what the text must match.
    logprobs, prompt_logprobs: how many alternatives; None for no log-probabilities.
    """

    model: str
    prompts: list[str | list[int]]
    max_tokens: int
    n: int
    best_of: int
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    bias: dict[int, float]
    constraint: Requested | None
    stop: list[str]
    include_stop: bool
    ignores_ends: bool
    min_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    token_ids: bool
    resume_token: bytes
    resume_every: int
    chars_per_second: float

    @property
    def reads_ids(self) -> bool:
        """Tell whether the vocabulary of the model matters to the request or its answer."""
        has_ids = any(not isinstance(prompt, str) for prompt in self.prompts)
        wants_ids = self.token_ids or self.prompt_logprobs is not None
        return has_ids or wants_ids or bool(self.bias) or self.ignores_ends or self.min_tokens > 0

    @property
    def names(self) -> dict[str, str]:
        """The fields of rill.proto that have other names in this request."""
        return FIELDS if self.constraint is None else {**FIELDS, **self.constraint.names}

    @property
    def is_scored(self) -> bool:
        """Tell whether the answer has the log-probabilities of the prompt as a text."""
        return self.echo and self.logprobs is not None


def completion_of(fields: Fields) -> Completion:
    """Read the fields of a request. Raises ApiError."""
    _refuse_the_impossible(fields)
    n = fields.whole("n", 1, MOST_SAMPLES) or 1
    best_of = fields.whole("best_of", 1, MOST_SAMPLES) or n
    stream, echo = fields.flag("stream"), fields.flag("echo")
    options = fields.object("stream_options")
    if options and not stream:
        fields.fail("stream_options", "stream_options is only allowed with stream: true")
    include_usage, continuous_usage = options.flag("include_usage"), options.flag("continuous_usage_stats")
    options.ignore("include_obfuscation")
    options.refuse_others()
    if best_of < n:
        fields.fail("best_of", f"best_of must be at least n, which is {n}, not {best_of}")
    if best_of > n and stream:
        fields.fail("best_of", "best_of must not be larger than n with stream: the best is known at the end")
    max_tokens = fields.whole("max_tokens", 0, values.MOST_CHARS)
    max_tokens = MAX_TOKENS if max_tokens is None else max_tokens
    if not max_tokens and not echo:
        fields.fail("max_tokens", "max_tokens must be at least 1 without echo: there would be no text")
    resume_token = token_of(fields.text("resume_token"))
    completion = Completion(
        model=fields.text("model"),
        prompts=_prompts(fields.take("prompt")),
        max_tokens=max_tokens,
        n=n,
        best_of=best_of,
        echo=echo,
        logprobs=fields.whole("logprobs", 0, values.MOST_ALTERNATIVES),
        prompt_logprobs=fields.whole("prompt_logprobs", 0, values.MOST_ALTERNATIVES),
        temperature=fields.number("temperature", 0.0, values.LARGEST_FLOAT32, "from 0 to 3.4e38"),
        top_p=fields.number("top_p", values.SMALLEST_FLOAT32, 1.0, "above 0 and up to 1"),
        top_k=_top_k(fields),
        min_p=fields.number("min_p", 0.0, 1.0, "from 0 to 1"),
        seed=_seed(fields),
        bias=_bias(fields),
        constraint=constraint_of(fields, bool(resume_token)),
        stop=_stop(fields),
        include_stop=fields.flag("include_stop_str_in_output"),
        ignores_ends=fields.flag("ignore_eos"),
        min_tokens=fields.whole("min_tokens", 0, values.MOST_CHARS) or 0,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and continuous_usage,
        token_ids=fields.flag("return_token_ids"),
        resume_token=resume_token,
        resume_every=fields.whole("resume_every", 0, values.MOST_CHARS) or 0,
        chars_per_second=fields.number("chars_per_second", 0.0, values.LARGEST_FLOAT32, "from 0 to 3.4e38") or 0.0,
    )
    if completion.min_tokens and (completion.stop or completion.constraint):
        other = "stop" if completion.stop else "a constraint"
        fields.fail("min_tokens", f"min_tokens is not supported together with {other}")
    fields.refuse_others()
    _check_size(completion)
    return completion


def encoded_token(token: bytes) -> str:
    """Return a resume token as JSON has it: base64url without padding."""
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def token_of(encoded: str) -> bytes:
    """Return the resume token that `encoded_token` wrote; padding is allowed. Raises ApiError."""
    bare = encoded.rstrip("=")
    try:
        if not re.fullmatch(r"[A-Za-z0-9_-]*", bare):
            raise binascii.Error
        return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        message = "resume_token is not base64url: A-Z, a-z, 0-9, - and _"
        raise ApiError(400, message, "resume_token", "resume_token_invalid") from None


def _refuse_the_impossible(fields: Fields) -> None:
    fields.ignore(*_WITHOUT_EFFECT)
    fields.allow_only({"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1}, _NO_PENALTIES)
    fields.allow_only({"suffix": ""}, "is not supported: the model reads from left to right")
    fields.allow_only({"messages": []}, "is not supported: there is no chat here, only a prompt")
    fields.allow_only(
        {"use_beam_search": False, "length_penalty": 1, "stop_token_ids": [], "bad_words": [], "prompt_embeds": []},
        _NOT_SUPPORTED,
    )
    fields.allow_only({"logprob_token_ids": [], "return_tokens_as_token_ids": False, "tools": []}, _NOT_SUPPORTED)


def _prompts(found: Any) -> list[str | list[int]]:
    match found:
        case None:
            return [""]
        case str():
            return [text("prompt", found)]
        case [int() | float(), *_]:
            return [_ids("prompt", found)]
        case [str() | list(), *_] if len(found) > MOST_PROMPTS:
            raise ApiError(400, f"prompt has {len(found)} prompts; at most {MOST_PROMPTS} are allowed", "prompt")
        case [str(), *_]:
            return [text(f"prompt[{at}]", one) for at, one in enumerate(found)]
        case [list(), *_]:
            return [_ids(f"prompt[{at}]", one) for at, one in enumerate(found)]
        case []:
            raise ApiError(400, "prompt is an empty list", "prompt")
    wanted = "a text, a list of texts, a list of symbol ids, or a list of such lists"
    raise ApiError(400, f"prompt must be {wanted}, not {shown(found)}", "prompt")


def _ids(name: str, found: Any) -> list[int]:
    if not isinstance(found, list):
        raise ApiError(400, f"{name} must be a list of symbol ids, not {shown(found)}", "prompt")
    if not all(type(one) is int for one in found):
        return [whole(f"{name}[{at}]", one, 0, 2**31) for at, one in enumerate(found)]
    return found


def _top_k(fields: Fields) -> int | None:
    found = fields.whole("top_k", -1, 2**32 - 1)
    return 0 if found == -1 else found  # vLLM's word for "off"


def _seed(fields: Fields) -> int | None:
    found = fields.take("seed")
    if isinstance(found, str) and re.fullmatch(r"[0-9]{1,20}", found):  # JavaScript has no larger number than 2^53
        found = int(found)
    return None if found is None else whole("seed", found, 0, 2**64 - 1)


def _bias(fields: Fields) -> dict[int, float]:
    given = fields.object("logit_bias")
    if len(given.names) > MOST_BIASES:
        fields.fail("logit_bias", f"logit_bias has {len(given.names)} symbols; at most {MOST_BIASES} are allowed")
    biases = {}
    for name in given.names:
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", name):
            fields.fail("logit_bias", f"logit_bias: {shown(name)} is not the id of a symbol")
        bias = given.number(name, -values.LARGEST_FLOAT32, values.LARGEST_FLOAT32, "that a float32 holds")
        if bias is not None:
            biases[int(name)] = float("-inf") if bias <= BAN else bias
    return biases


def _stop(fields: Fields) -> list[str]:
    found = fields.take("stop")
    if found is None:
        return []
    if not isinstance(found, str | list):
        fields.fail("stop", f"stop must be a text or a list of texts, not {shown(found)}")
    if isinstance(found, list) and len(found) > MOST_STOPS:
        fields.fail("stop", f"stop has {len(found)} texts; at most {MOST_STOPS} are allowed")
    return texts("stop", [found] if isinstance(found, str) else found)


def check_texts(completion: Completion, vocabulary: Vocabulary) -> None:
    """Refuse what the model's symbols do not allow. Raises ApiError."""
    if completion.min_tokens and vocabulary.ends and not completion.ignores_ends:
        message = "min_tokens is not supported by a model with end symbols, except with ignore_eos"
        raise ApiError(400, message, "min_tokens")
    if not vocabulary.are_characters:
        try:
            _check_size(completion, MAX_SYMBOL)
        except ApiError:  # perhaps: the symbols are looked at only now, for there may be many
            _check_size(completion, max(map(len, vocabulary.symbols)))


def _check_size(completion: Completion, longest_symbol: int = 1) -> None:
    texts_wanted = len(completion.prompts) * completion.best_of
    if texts_wanted > MOST_TEXTS:
        message = f"{texts_wanted} texts are requested (prompts times best_of); at most {MOST_TEXTS} are allowed"
        raise ApiError(400, message, "n")
    if completion.stream:
        return
    each = 4 * longest_symbol
    if completion.logprobs is not None:
        each = max(each, 60 + 4 * longest_symbol) * (2 + completion.logprobs)
    most = MOST_COLLECTED // (each * texts_wanted)
    if completion.max_tokens > max(most, MAX_TOKENS):
        message = f"max_tokens is {completion.max_tokens}; without stream: true this request may have at most {most}"
        raise ApiError(400, message, "max_tokens")
