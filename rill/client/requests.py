"""Build requests from plain parameters."""

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from rill.client import values
from rill.v1 import rill_pb2 as pb

MAX_CHARS = 400  # of a text that is requested without a limit, as for `rill generate`


def generate_request(
    prompt: str = "",
    *,
    model: str = "",
    max_chars: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    logit_bias: Mapping[str, float] | None = None,
    regex: str | None = None,
    choices: Iterable[str] | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    terminator: str | None = None,
    unconstrained: bool = False,
    stop: str | Iterable[str] = (),
    include_stop: bool = False,
    logprobs: int | None = None,
    resume_token: bytes = b"",
    resume_every: int = 1024,
    chars_per_second: float = 0.0,
) -> pb.GenerateRequest:
    """Build the request for a text. rill.proto describes the parameters; None leaves one to the server.

        request = generate_request("ROMEO:", max_chars=400, temperature=0.7, stop=["JULIET:"], logprobs=2)

    A `max_chars` of None is 400, and 0 is endless. `stop` is one text or several. `regex`, `choices` or `json_schema`,
    a dict or JSON text, is what the text must match, and `terminator` the symbol that may end it where more may follow;
    `unconstrained` removes the constraint of `resume_token`. Raises TypeError or ValueError, with the parameter's name,
    for values that no server takes, such as a negative seed.
    """
    return pb.GenerateRequest(
        model=values.text("model", model),
        prompt=values.text("prompt", prompt),
        max_chars=chars_limit(max_chars),
        sampling=sampling_message(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            logit_bias=logit_bias,
            regex=regex,
            choices=choices,
            json_schema=json_schema,
            terminator=terminator,
            unconstrained=unconstrained,
        ),
        stop=values.texts("stop", stop),
        include_stop=values.flag("include_stop", include_stop),
        logprobs=values.alternatives("logprobs", logprobs),
        resume_token=values.data("resume_token", resume_token),
        resume_every=values.whole("resume_every", resume_every, 2**64 - 1),
        chars_per_second=values.chars_per_second(chars_per_second),
    )


def generate_action(
    max_chars: int | None,
    stop: str | Iterable[str],
    include_stop: bool,
    logprobs: int | None,
    chars_per_second: float,
) -> pb.InteractRequest.Generate:
    """Build the action of a session that generates a text; see `generate_request`."""
    return pb.InteractRequest.Generate(
        max_chars=chars_limit(max_chars),
        stop=values.texts("stop", stop),
        include_stop=values.flag("include_stop", include_stop),
        logprobs=values.alternatives("logprobs", logprobs),
        chars_per_second=values.chars_per_second(chars_per_second),
    )


def open_action(model: str, resume_token: bytes, sampling: pb.Sampling) -> pb.InteractRequest.Open:
    """Build the first action of a session. Raises TypeError or ValueError."""
    return pb.InteractRequest.Open(
        model=values.text("model", model), resume_token=values.data("resume_token", resume_token), sampling=sampling
    )


def score_request(
    text: str,
    model: str,
    resume_token: bytes,
    top_logprobs: int | None,
    as_prompt: bool,
    include_end: bool = False,
) -> pb.ScoreRequest:
    """Build the request for a score. Raises TypeError or ValueError."""
    return pb.ScoreRequest(
        text=values.text("text", text),
        model=values.text("model", model),
        resume_token=values.data("resume_token", resume_token),
        top_logprobs=values.alternatives("top_logprobs", top_logprobs),
        as_prompt=values.flag("as_prompt", as_prompt),
        include_end=values.flag("include_end", include_end),
    )


def sampling_message(
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    logit_bias: Mapping[str, float] | None = None,
    regex: str | None = None,
    choices: Iterable[str] | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    terminator: str | None = None,
    unconstrained: bool = False,
) -> pb.Sampling:
    """Build the message of all parameters that are not None. Raises TypeError or ValueError, with the name."""
    return pb.Sampling(
        temperature=None if temperature is None else values.temperature(temperature),
        top_k=None if top_k is None else values.top_k(top_k),
        top_p=None if top_p is None else values.top_p(top_p),
        min_p=None if min_p is None else values.min_p(min_p),
        seed=None if seed is None else values.seed(seed),
        logit_bias=None if logit_bias is None else values.logit_bias(logit_bias),
        constraint=_constraint_message(regex, choices, json_schema, terminator, unconstrained),
    )


def _constraint_message(
    regex: str | None,
    choices: Iterable[str] | None,
    json_schema: Mapping[str, Any] | str | None,
    terminator: str | None,
    unconstrained: bool,
) -> pb.Constraint | None:
    """Build the message of a constraint; an empty one removes that of a token or a session."""
    removes = values.flag("unconstrained", unconstrained)
    given = {"regex": regex, "choices": choices, "json_schema": json_schema}
    kinds = [name for name, value in given.items() if value is not None]
    if len(kinds) > 1:
        raise ValueError(f"give {kinds[0]} or {kinds[1]}, not both: a text has one constraint")
    if removes and (kinds or terminator is not None):
        raise ValueError(f"give {kinds[0] if kinds else 'terminator'} or unconstrained, not both")
    if removes:
        return pb.Constraint()
    if not kinds:
        if terminator is not None:
            raise ValueError("terminator goes with regex, choices or json_schema")
        return None
    return pb.Constraint(
        regex=None if regex is None else values.text("regex", regex),
        choices=None if choices is None else pb.Constraint.Choices(text=values.choices(choices)),
        json_schema=None if json_schema is None else values.json_schema(json_schema),
        terminator=None if terminator is None else values.text("terminator", terminator),
    )


def chars_limit(max_chars: int | None) -> int:
    """Return how many characters a message is to ask for; 0 is endless. Raises TypeError or ValueError."""
    return MAX_CHARS if max_chars is None else values.whole("max_chars", max_chars, values.MOST_CHARS)


def checked_id(request_id: str) -> str:
    """Return the id, or a new one if it is empty. Raises TypeError or ValueError."""
    return secrets.token_hex(8) if request_id == "" else values.request_id(request_id)


def finish_reason(number: int) -> str:
    """Return LENGTH, STOP or DRAINING, or the number of a reason that only newer servers know."""
    known = pb.FinishReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("FINISH_REASON_") if known else str(number)


def matches(usage: pb.Usage | None) -> bool | None:
    """Return whether a text matches its constraint; None where it has none, or that is not known."""
    return usage.matches if usage is not None and usage.HasField("matches") else None
