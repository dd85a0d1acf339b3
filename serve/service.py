"""The rill.v1 servicer: requests to streams, text to messages, errors to statuses."""

import secrets
import time
from collections.abc import Mapping
from functools import wraps
from typing import Any

import numpy as np

from export.sampling import Sampling, SamplingError
from protos import rill_pb2 as pb
from protos.rill_pb2_grpc import TextGenerationServicer
from serve.errors import DrainingError, ModelNotFoundError, NotSupportedError, RequestError, RillError
from serve.model import Model
from serve.runtime import numerics
from serve.status import Context, abort
from serve.stream import End, Order, Stream
from train.vocab import UnknownCharacterError

MAX_PROMPT = 1_000_000  # characters

_FINISH = {End.LENGTH: pb.FINISH_REASON_LENGTH, End.DRAINING: pb.FINISH_REASON_DRAINING}


def _statuses(handler: Any) -> Any:
    """Let a handler raise RillError; the call then ends with its status."""

    @wraps(handler)
    async def handle(self: "TextGeneration", request: Any, context: Context) -> Any:
        try:
            return await handler(self, request, context)
        except RillError as error:
            await abort(context, error)

    return handle


class TextGeneration(TextGenerationServicer):
    """`models` by name, the first of them being the default."""

    def __init__(self, models: Mapping[str, Model], max_prompt: int = MAX_PROMPT) -> None:
        self._models, self._max_prompt = models, max_prompt
        self.draining = False

    @_statuses
    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Stream text; see rill.proto."""
        arrived = time.monotonic()
        model = self._model(request.model)
        order = order_of(request, model, self._max_prompt)
        async with model.stream(order) as stream:
            end = None
            while end is None:
                text, end = await stream.take()
                await context.write(_message(stream, text, end, arrived))
                model.sent(stream, text)
        if end is End.DRAINING:
            raise DrainingError("the server is going away; the text ends early")

    async def Interact(self, request_iterator: Any, context: Context) -> None:
        """Not in this version."""
        await abort(context, NotSupportedError("Interact is not supported by this version of the server"))

    async def Score(self, request: pb.ScoreRequest, context: Context) -> None:
        """Not in this version."""
        await abort(context, NotSupportedError("Score is not supported by this version of the server"))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """What is served, and how busy it is."""
        models = self._models.values()
        return pb.ListModelsResponse(
            models=[_info(model) for model in models],
            streams_running=sum(model.admission.running for model in models),
            streams_waiting=sum(model.admission.waiting for model in models),
            streams_parked=sum(model.engine.parked() for model in models),
            draining=self.draining,
        )

    def _model(self, name: str) -> Model:
        if self.draining:
            raise DrainingError("the server is going away and takes no new streams")
        if name and name not in self._models:
            raise ModelNotFoundError(f"no model {name!r} is served here; there is {', '.join(map(repr, self._models))}")
        return self._models[name] if name else next(iter(self._models.values()))


def order_of(request: pb.GenerateRequest, model: Model, max_prompt: int) -> Order:
    """What to generate. Raises RequestError for a field without meaning, NotSupportedError for one without it yet."""
    for field in ("resume_token", "resume_every", "stop", "include_stop"):
        if getattr(request, field):
            raise NotSupportedError(f"{field} is not supported by this version of the server")
    if request.HasField("logprobs"):
        raise NotSupportedError("logprobs is not supported by this version of the server")
    if not 0 <= request.chars_per_second < float("inf"):
        raise RequestError(
            "chars_per_second", f"chars_per_second must be a finite number >= 0, not {request.chars_per_second}"
        )
    if request.max_chars >= 2**62:
        raise RequestError("max_chars", "max_chars must be below 2^62; 0 means no limit")
    if len(request.prompt) > max_prompt:
        raise RequestError("prompt", f"the prompt has {len(request.prompt)} characters; this server takes {max_prompt}")
    try:
        prompt = model.codec.encode(request.prompt)
    except UnknownCharacterError as error:
        raise RequestError("prompt", f"prompt: {error}") from None
    if not request.prompt:
        prompt = np.array([model.bundle.vocabulary.start_id])
    seed = request.sampling.seed if request.sampling.HasField("seed") else secrets.randbits(53)  # exact in JSON too
    return Order(
        prompt=prompt,
        prompt_chars=len(request.prompt),
        sampling=_sampling(request.sampling, model),
        seed=seed,
        max_chars=request.max_chars,
        chars_per_second=request.chars_per_second,
    )


def _sampling(message: pb.Sampling, model: Model) -> Sampling:
    """The parameters that the message sets, defaults for the others."""
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
    banned = sum(value == float("-inf") for value in bias.values())
    if banned >= len(symbols) - (symbols.unknown_id is not None):
        raise RequestError("sampling.logit_bias", "logit_bias bans every character of the model")
    if given.get("top_k", 0) >= len(symbols):
        given["top_k"] = 0  # keeps all, and would sort them
    try:
        return Sampling(logit_bias=bias, **given)
    except SamplingError as error:
        raise RequestError(f"sampling.{error.parameter}", str(error)) from None


def _message(stream: Stream, text: str, end: End | None, arrived: float) -> pb.GenerateResponse:
    message = pb.GenerateResponse(text=text, position=stream.sent)
    if stream.sent == 0:
        message.seed = stream.order.seed
    if end:
        message.finish_reason = _FINISH[end]
        message.usage.CopyFrom(_usage(stream, stream.sent + len(text), arrived))
    return message


def _usage(stream: Stream, generated: int, arrived: float) -> pb.Usage:
    def since(moment: float | None) -> float:
        return moment - arrived if moment else 0.0

    return pb.Usage(
        prompt_chars=stream.order.prompt_chars,
        generated_chars=generated,
        queued_seconds=since(stream.entered),
        first_char_seconds=since(stream.first_char),
        total_seconds=since(time.monotonic()),
    )


def _info(model: Model) -> pb.ModelInfo:
    bundle = model.bundle
    return pb.ModelInfo(
        name=bundle.name,
        model_id=bundle.model_id,
        cell=bundle.model["cell"],
        layers=bundle.layers,
        hidden=bundle.hidden,
        vocabulary_size=len(bundle.vocabulary),
        precision=bundle.precision,
        provider=model.provider,
        streamable=bundle.streamable,
        state_bytes=4 * bundle.layers * bundle.hidden * len(bundle.states),
        numerics=numerics(model.provider),
        vocabulary=bundle.vocabulary.symbols,
    )
