"""Many short texts in one call: each is read as `rill.serve.api.score` reads one, and only its total is returned.

The call has one slot, in which the texts are read one after another; a client that wants several at a time makes
several calls. Nobody waits for the first character of a text or takes its log-probabilities as they come, so a text
costs little more than its steps: messages, and rounds for newcomers, would cost as much as fifty characters.
"""

import time
from dataclasses import replace

from rill.serve.api.call import Call
from rill.serve.api.cutting import cut_text
from rill.serve.api.requests import CHECKED_AT_ONCE, score_spec_of
from rill.serve.api.score import Score, read, reading
from rill.serve.config import ServerConfig
from rill.serve.engine.text_codec import GivenText
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import DrainingError, RequestError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

MOST_TEXTS = 1024
MESSAGE_SECONDS = 0.5  # between two messages of a call, at least


class _Totals:
    """The totals of a call that are not sent yet."""

    def __init__(self, call: Call, model_id: str) -> None:
        self._call = call
        self._message = pb.ScoreResponse(model_id=model_id)
        self._last = time.monotonic()

    async def add(self, total: pb.ScoreResponse.TextTotal) -> None:
        """Send a total soon."""
        self._message.totals.append(total)
        if time.monotonic() - self._last >= MESSAGE_SECONDS:
            await self.send()

    async def send(self) -> None:
        """Send what there is."""
        if self._message.totals:
            message, self._message = self._message, pb.ScoreResponse()
            await self._call.write(message)
            self._last = time.monotonic()


def require_only_texts(request: pb.ScoreRequest) -> None:
    """Raise RequestError for fields that do not go with `texts`, and for too many texts."""
    if request.text:
        raise RequestError("text", "text and texts exclude each other")
    if request.HasField("top_logprobs"):
        raise RequestError("top_logprobs", "top_logprobs goes with text: of texts, only totals are returned")
    if len(request.texts) > MOST_TEXTS:
        raise RequestError("texts", f"there are {len(request.texts)} texts; the limit is {MOST_TEXTS}")


async def score_texts(
    request: pb.ScoreRequest, spec: StreamSpec, model: Model, slot: int, config: ServerConfig, call: Call
) -> None:
    """Send the totals of the texts of `request`, each read where `spec` would begin to generate.

    Raises DrainingError and EngineError, after the totals so far have been sent.
    """
    totals = _Totals(call, model.bundle.model_id)
    try:
        for text in request.texts:
            try:
                total = await _total(request, text, spec, model, slot, config)
            except RequestError as error:
                total = pb.ScoreResponse.TextTotal(error=str(error).removeprefix("text: "))
            call.on_scored(total.chars)
            await totals.add(total)
    except DrainingError:
        await totals.send()
        raise
    await totals.send()


async def _total(
    request: pb.ScoreRequest, text: str, spec: StreamSpec, model: Model, slot: int, config: ServerConfig
) -> pb.ScoreResponse.TextTotal:
    text = await cut_text(text, model, config.max_score_chars, "text")
    spec = await score_spec_of(request, text, spec, model, config)
    ends = model.bundle.vocabulary.end_ids if request.include_end else ()
    if len(ends) > 1:  # their probabilities are added up
        score = Score()
        await read(model, slot, replace(spec, logprobs=0), text, score.collect, include_end=True)
        return pb.ScoreResponse.TextTotal(chars=score.chars, logprob=score.logprob)
    whole = model.codec.encode(text) if len(text) <= CHECKED_AT_ONCE else None
    given = GivenText(text, model.codec, spec.prompt_chars, whole, *ends)
    logprob = await model.total_in(slot, replace(reading(spec, given), only_total=True)) if given else 0.0
    return pb.ScoreResponse.TextTotal(chars=len(given), logprob=logprob)
