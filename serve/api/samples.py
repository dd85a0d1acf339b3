"""Many short texts of one request in one call: a text for each seed, returned when it is complete.

The call has one slot, in which the texts are generated one after another; a client that wants several at a time makes
several calls. Nobody waits for the first character of a text, nor for a token at its end, so a text costs little more
than its steps: a call, its messages and rounds for newcomers would cost as much as the text.
"""

import time
from dataclasses import replace
from math import fsum

from rill.serve.api.call import Call
from rill.serve.api.responses import FINISH
from rill.serve.engine.types import Piece, StreamSpec
from rill.serve.errors import RequestError, ServeError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

MOST_SAMPLES = 1024
MOST_CHARS = 16_384  # of each: they are in memory until they are complete
MESSAGE_SECONDS = 0.5  # between two messages of a call, at least
MESSAGE_CODE_POINTS = 65_536  # or sooner, with so much text


def require_only_samples(request: pb.GenerateRequest) -> None:
    """Raise RequestError for fields that do not go with `seeds`, and for too many seeds."""
    for field in ("resume_token", "resume_every", "chars_per_second"):
        if getattr(request, field):
            raise RequestError(field, f"{field} does not go with seeds: samples are whole texts, without tokens")
    if request.sampling.HasField("seed"):
        raise RequestError("sampling.seed", "seed and seeds exclude each other")
    if request.logprobs:
        raise RequestError("logprobs", "logprobs must be 0 beside seeds: of a sample, only the sum is returned")
    if len(request.seeds) > MOST_SAMPLES:
        raise RequestError("seeds", f"there are {len(request.seeds)} seeds; the limit is {MOST_SAMPLES}")


def require_short_samples(spec: StreamSpec) -> None:
    """Raise RequestError if a text could be too long to be returned whole."""
    if not 0 < spec.max_chars <= MOST_CHARS:
        given = spec.max_chars or "without a limit"
        raise RequestError("max_chars", f"max_chars must be from 1 to {MOST_CHARS} beside seeds, not {given}")


async def send_samples(request: pb.GenerateRequest, spec: StreamSpec, model: Model, slot: int, call: Call) -> None:
    """Send the texts of `spec` with each of the seeds of `request`.

    Raises DrainingError and EngineError, after the texts so far have been sent.
    """
    spec = replace(spec, is_whole=True)
    message, code_points, last = pb.GenerateResponse(), 0, time.monotonic()

    async def send() -> None:
        nonlocal message, code_points, last
        if message.samples:
            ready, message, code_points = message, pb.GenerateResponse(), 0
            await call.write(ready)
            call.on_samples(spec.prompt_chars * len(ready.samples), sum(sample.chars for sample in ready.samples))
            last = time.monotonic()

    try:
        for index, seed in enumerate(request.seeds):
            piece, reason = await model.whole_in(slot, replace(spec, seed=seed))
            sample = _sample(index, piece, spec, model)
            sample.finish_reason = FINISH[reason]
            message.samples.append(sample)
            code_points += len(sample.text)
            if code_points >= MESSAGE_CODE_POINTS or time.monotonic() - last >= MESSAGE_SECONDS:
                await send()
    except ServeError:
        await send()
        raise
    await send()


def _sample(index: int, piece: Piece, spec: StreamSpec, model: Model) -> pb.Sample:
    text = piece.text if model.codec.is_text else "".join(model.codec.symbols(piece.text))
    sample = pb.Sample(index=index, text=text, chars=len(piece.text))
    if spec.logprobs is not None:
        # Exact, as a client adds up those of single calls.
        sample.logprob = fsum(piece.logprobs.chosen.tolist()) if piece.logprobs else 0.0
    if spec.automaton and piece.snapshot:
        sample.matches = spec.automaton.matches(piece.snapshot.automaton_state)
    return sample
