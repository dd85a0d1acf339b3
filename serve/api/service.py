"""The rill.v1 servicer: requests to streams, text to messages, errors to statuses."""

from collections.abc import AsyncIterator, Callable
from functools import wraps
from types import MethodType
from typing import Any

import grpc

from rill.serve.access.client_limits import ClientLimits
from rill.serve.api.call import Call
from rill.serve.api.interact import Inbox, Interaction
from rill.serve.api.requests import spec_of
from rill.serve.api.responses import FINISH, CallTimes, ResponseBuilder
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.api.score import CHECKED_AT_ONCE, Floats, Score, given_text, read
from rill.serve.api.stalls import StallWatch
from rill.serve.api.statuses import Context, set_status
from rill.serve.config import ServerConfig
from rill.serve.engine.stream import Stream
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import DrainingError, OutOfOrderError, ServeError
from rill.serve.models.catalog import Catalog
from rill.serve.models.model import Model
from rill.serve.observe.ledger import Ledger
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer


def _statuses(handler: Any) -> Any:
    """Let a handler raise RillError; the call then ends with its status. It is given the Call, to tell it of itself."""

    @wraps(handler)
    async def handle(self: "TextGeneration", request: Any, context: Context) -> Any:
        call = self._make_call(handler.__name__, context, self._ledger)
        self._stalls.begin(call)
        try:
            if isinstance(request, ServeError):  # `rill.serve.api.wire`
                raise request
            return await handler(self, request, context, call)
        except BaseException as caught:
            error = self._stalls.reason(call, caught)
            call.fail(error)
            if not isinstance(error, ServeError):
                raise
            set_status(context, error)
            return None
        finally:
            self._stalls.end(call)
            call.close()

    return handle


def _refusal(service: "TextGeneration", method: str) -> Any:
    """The handler of calls of `method` that find no room. To gRPC it is of the kind that begins with nothing read."""

    async def refuse(self: TextGeneration, request: Any, context: Context, call: Call) -> None:
        model = self._models.default
        call.found(model.metrics)
        raise model.slots.full_error()

    refuse.__name__ = method
    handler: Any = grpc.stream_stream_rpc_method_handler(MethodType(_statuses(refuse), service))
    return handler


class TextGeneration(TextGenerationServicer):
    """The service's methods, over `models`, within the limits of `config` and `clients`."""

    def __init__(
        self,
        models: Catalog,
        tokens: ResumeTokens,
        config: ServerConfig,
        clients: ClientLimits | None = None,
        messages: ResponseBuilder | None = None,
        make_call: Callable[[str, Context, Ledger], Call] = Call,
    ) -> None:
        self._models, self._tokens, self._config = models, tokens, config
        self._messages, self._make_call = messages or ResponseBuilder(tokens), make_call
        self._inboxes: set[Inbox] = set()
        self._clients, self._ledger = clients or ClientLimits(), Ledger()
        self._stalls = StallWatch(config.stall_seconds)
        self._refusals = {method: _refusal(self, method) for method in ("Generate", "Interact", "Score")}
        self.draining = False

    def instead(self, method: str) -> Any:
        """The handler of a call that finds no room; None for others. With its request read it costs 1.4 times as much.

        Where there are several models, only the request says which it is for.
        """
        served = self._models.served
        is_full = len(served) == 1 and served[0].slots.is_full
        return self._refusals.get(method) if is_full and not self.draining else None

    def drain(self) -> None:
        """Take no new calls, and end those that wait for their client."""
        self.draining = True
        for inbox in self._inboxes:
            inbox.drain()

    def close(self) -> None:
        """All calls are over: let the metrics and the log have the last of them."""
        self._ledger.settle()

    @_statuses
    async def Generate(self, request: pb.GenerateRequest, context: Context, call: Call) -> None:
        """Stream text; see rill.proto."""
        model = self._model(call, request.model, request.resume_token)
        with self._clients.admit(context), model.in_flight:
            spec = await self._spec(request, model, context)
            async with model.slot() as slot:
                call.joined(spec)
                with model.stream_in(slot, spec) as stream:
                    end = await self._send(model, stream, call)
        if end is FinishReason.DRAINING:
            raise DrainingError("the server is going away; the text ends early")

    async def _send(self, model: Model, stream: Stream, call: Call) -> FinishReason:
        """Send a stream's messages; returns how it ended."""
        times, spec = CallTimes(call.arrived), stream.spec
        end, first = None, True
        while end is None:
            piece, end = await stream.next_piece()
            times.note(stream)
            message = self._messages.output(model, stream, piece)
            if first:
                message.seed = spec.seed
                call.read(spec.prompt_chars)
                first = False
            if end:
                message.finish_reason = FINISH[end]
                message.usage.CopyFrom(times.usage(spec.prompt_chars, stream.sent + len(piece.text)))
            await call.write(self._messages.with_logprobs(message, model, stream, piece))
            model.mark_sent(stream, piece.text)
            call.generated(times, len(piece.text))
        call.end = end.value
        return end

    @_statuses
    async def Interact(self, actions: AsyncIterator[pb.InteractRequest], context: Context, call: Call) -> None:
        """One live state; see rill.proto."""
        inbox = Inbox(actions)
        self._inboxes.add(inbox)
        try:
            first = await call.until("opened", inbox.take())
            if first is None or not first.HasField("open"):
                raise OutOfOrderError("the first action must be open")
            asked = first.open
            model = self._model(call, asked.model, asked.resume_token)
            request = pb.GenerateRequest(resume_token=asked.resume_token, sampling=asked.sampling)
            with self._clients.admit(context), model.in_flight:
                spec = await self._spec(request, model, context)
                async with model.slot() as slot:
                    call.joined(spec)
                    await Interaction(model, slot, spec, self._messages, self._config, inbox, call).run()
        finally:
            self._inboxes.remove(inbox)
            inbox.close()

    @_statuses
    async def Score(self, request: pb.ScoreRequest, context: Context, call: Call) -> None:
        """Judge a text; see rill.proto."""
        model, score = self._model(call, request.model, request.resume_token), Score()

        async def write(logprobs: Floats) -> None:
            await call.write(pb.ScoreResponse(position=score.chars, logprobs=logprobs.tolist()))
            score.add(logprobs)
            call.scored(len(logprobs))

        with self._clients.admit(context), model.in_flight:
            spec = await self._spec(pb.GenerateRequest(resume_token=request.resume_token), model, context)
            text = await given_text(request.text, model, self._config.max_score_chars)
            async with model.slot() as slot:
                call.joined(spec)
                snapshot = await read(model, slot, spec, text, write)
        total = pb.ScoreResponse.Total(
            chars=score.chars,
            logprob=score.logprob,
            bits_per_char=score.bits_per_char,
            perplexity=score.perplexity,
            resume_token=self._messages.token(model, spec, snapshot),
        )
        await call.write(pb.ScoreResponse(position=score.chars, total=total))

    @_statuses
    async def ListModels(self, request: pb.ListModelsRequest, context: Context, call: Call) -> pb.ListModelsResponse:
        """What is served, and how busy it is."""
        models = self._models.all
        return pb.ListModelsResponse(
            models=[_info(model) for model in self._models.served],
            streams_running=sum(model.slots.running for model in models),
            streams_waiting=sum(model.slots.waiting for model in models),
            streams_parked=sum(model.parked for model in models),
            draining=self.draining,
        )

    async def _spec(self, request: pb.GenerateRequest, model: Model, context: Context) -> StreamSpec:
        """What to generate; the client is told if its token comes from where texts may have other bits."""
        model.slots.require_capacity()
        resumption = None
        if request.resume_token:
            resumption = self._tokens.open(request.resume_token, model.bundle, model.numerics)
        text, most = request.prompt, self._config.max_prompt
        # As an array, a long one would hold up all others for tens of milliseconds.
        prompt = await given_text(text, model, most, "prompt") if CHECKED_AT_ONCE < len(text) <= most else None
        spec = spec_of(request, resumption, model, self._config, prompt)
        if resumption and not resumption.same_numerics:
            await context.send_initial_metadata((("rill-numerics", "differs"),))
        return spec

    def _model(self, call: Call, name: str, token: bytes = b"") -> Model:
        """The model of this name, or without one that of the token, or without either the default."""
        if self.draining:
            raise DrainingError("the server is going away and takes no new streams")
        if name:
            model = self._models.by_name(name)
        else:
            model = self._models.by_id_prefix(self._tokens.model_of(token)) if token else self._models.default
        call.found(model.metrics)
        return model


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
        numerics=model.numerics,
        vocabulary=bundle.vocabulary.symbols,
    )
