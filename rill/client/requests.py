"""Requests made of plain parameters, and what their answers say in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from rill.v1 import rill_pb2 as pb


def generate_request(
    prompt: str = "",
    *,
    model: str = "",
    max_chars: int = 0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    logit_bias: Mapping[str, float] | None = None,
    stop: Sequence[str] = (),
    include_stop: bool = False,
    logprobs: int | None = None,
    resume_token: bytes = b"",
    resume_every: int = 1024,
    chars_per_second: float = 0.0,
) -> pb.GenerateRequest:
    """The request for a text; every parameter is described in rill.proto, None leaves it to the server.

    Raises ValueError for what no message can hold: a negative seed, say.
    """
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return pb.GenerateRequest(
        model=model,
        prompt=prompt,
        max_chars=max_chars,
        sampling=pb.Sampling(
            logit_bias=logit_bias, **{name: value for name, value in given.items() if value is not None}
        ),
        stop=stop,
        include_stop=include_stop,
        logprobs=logprobs,
        resume_token=resume_token,
        resume_every=resume_every,
        chars_per_second=chars_per_second,
    )


def finish_reason(number: int) -> str:
    """LENGTH, STOP or DRAINING; of one that only newer servers know, its number."""
    known = pb.FinishReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("FINISH_REASON_") if known else str(number)


def sampling_message(parameters: dict[str, Any]) -> pb.Sampling:
    """Those of the parameters that are not None. Raises ValueError, with the name, for what no message can hold."""
    sampling = pb.Sampling()
    for name, value in parameters.items():
        try:
            sampling.MergeFrom(pb.Sampling(**{name: value}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from None
    return sampling
