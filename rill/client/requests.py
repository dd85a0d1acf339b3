"""Build requests from plain parameters."""

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
    """Build the request for a text. rill.proto describes the parameters; None leaves one to the server.

        request = generate_request("ROMEO:", max_chars=400, temperature=0.7, stop=["JULIET:"], logprobs=2)

    Raises ValueError for values that no message can hold, such as a negative seed.
    """
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return pb.GenerateRequest(
        model=model,
        prompt=prompt,
        max_chars=max_chars,
        sampling=sampling_message({**sampling, "logit_bias": logit_bias}),
        stop=stop,
        include_stop=include_stop,
        logprobs=logprobs,
        resume_token=resume_token,
        resume_every=resume_every,
        chars_per_second=chars_per_second,
    )


def finish_reason(number: int) -> str:
    """Return LENGTH, STOP or DRAINING, or the number of a reason that only newer servers know."""
    known = pb.FinishReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("FINISH_REASON_") if known else str(number)


def sampling_message(parameters: dict[str, Any]) -> pb.Sampling:
    """Build the message of all parameters that are not None. Raises ValueError, with the name, for invalid values."""
    sampling = pb.Sampling()
    for name, value in parameters.items():
        try:
            sampling.MergeFrom(pb.Sampling(**{name: value}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from None
    return sampling
