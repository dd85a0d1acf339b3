"""The rill.v1 servicer: requests to streams, text to messages, errors to statuses."""

from collections.abc import AsyncIterator, Callable
from functools import partial, wraps
from types import MethodType
from typing import Any

import grpc

from rill.serve.access.client_limits import ClientLimits
from rill.serve.api.call import Call
from rill.serve.api.compile_line import Caller, CompileLine
from rill.serve.api.constraints import constrained, tables_of, unpacked
from rill.serve.api.cutting import cut_text
from rill.serve.api.interact import Inbox, Interaction
from rill.serve.api.requests import GenerateParameters, parameters_of, require_end, score_spec_of, spec_of
from rill.serve.api.responses import ResponseBuilder
from rill.serve.api.resume_tokens import OpenToken, ResumeTokens
from rill.serve.api.samples import require_only_samples, require_short_samples, send_samples
from rill.serve.api.score import NO_LOGPROB, Score, read
from rill.serve.api.score_texts import require_only_texts, score_texts
from rill.serve.api.sender import TextSender
from rill.serve.api.stalls import StallWatch
from rill.serve.api.statuses import Context, set_status
from rill.serve.config import ServerConfig
from rill.serve.constraints.compiler import Compiler
from rill.serve.engine.types import FinishReason, Logprobs, StreamSpec
from rill.serve.errors import DrainingError, OutOfOrderError, ServeError
from rill.serve.models.catalog import Catalog
from rill.serve.models.model import Model
from rill.serve.observe.ledger import Ledger
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer


def _statuses(handler: Any) -> Any:
    """Pass a Call to a handler, which may raise ServeError: the call then ends with the status of the error."""

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
    """Return the handler of calls of `method` that find no slot. For gRPC it is of a kind that reads no request."""

    async def refuse(self: TextGeneration, request: Any, context: Context, call: Call) -> None:
        model = self._models.default
        call.on_model(model.metrics)
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
        self._compiler = Compiler()
        self._compile_line = CompileLine(self._compiler)
        self._stalls = StallWatch(config.stall_seconds)
        self._refusals = {method: _refusal(self, method) for method in ("Generate", "Interact", "Score")}
        self.draining = False

    def instead(self, method: str) -> Any:
        """Return the handler of a call that finds no slot, else None. Reading the request would cost 1.4 times as much.

        Where there are several models, only the request tells which one it is for.
        """
        served = self._models.served
        is_full = len(served) == 1 and served[0].slots.is_full
        return self._refusals.get(method) if is_full and not self.draining else None

    def drain(self) -> None:
        """Take no new calls, and end those that wait for their client."""
        self.draining = True
        self._compile_line.drain()
        for inbox in self._inboxes:
            inbox.drain()

    async def close(self) -> None:
        """Write the last metrics and log lines, after all calls have ended, and end the process of the compiler."""
        self._ledger.settle()
        await self._compiler.close()

    @_statuses
    async def Generate(self, request: pb.GenerateRequest, context: Context, call: Call) -> None:
        """Stream text; see rill.proto."""
        parameters = parameters_of(request)
        if request.seeds:
            require_only_samples(request)
        model, token = self._find(parameters, call)
        with self._clients.admit(context), model.in_flight:
            spec = await self._resolve(parameters, token, model, context)
            if request.seeds:
                require_short_samples(spec)
            if spec.constraint:
                spec = await self._constrain(spec, parameters, model, context, call)
            if request.seeds:
                async with model.slot() as slot, tables_of(spec, model):
                    call.on_slot(spec)
                    await send_samples(request, spec, model, slot, call)
                return
            async with model.slot() as slot:
                call.on_slot(spec)
                sender = TextSender(spec, model, self._messages, call, call.arrived, call.write)
                async with tables_of(spec, model):
                    with model.stream_in(slot, spec) as stream:
                        reason = await sender.send(stream)
        call.end = reason.value
        if reason is FinishReason.DRAINING:
            raise DrainingError("the server is shutting down; the text ends early")

    @_statuses
    async def Interact(self, actions: AsyncIterator[pb.InteractRequest], context: Context, call: Call) -> None:
        """Hold one live state; see rill.proto."""
        inbox = Inbox(actions)
        self._inboxes.add(inbox)
        try:
            first = await call.until("opened", inbox.take())
            if first is None or not first.HasField("open"):
                raise OutOfOrderError("the first action must be open")
            parameters = parameters_of(first.open)
            model, token = self._find(parameters, call)
            with self._clients.admit(context), model.in_flight:
                spec = await self._resolve(parameters, token, model, context)
                constrain = partial(self._constrain, model=model, context=context, call=call)
                if spec.constraint:
                    spec = await constrain(spec, parameters)
                async with model.slot() as slot:
                    call.on_slot(spec)
                    await Interaction(model, slot, spec, self._messages, self._config, inbox, call, constrain).run()
        finally:
            self._inboxes.remove(inbox)
            inbox.close()

    @_statuses
    async def Score(self, request: pb.ScoreRequest, context: Context, call: Call) -> None:
        """Judge a text; see rill.proto."""
        parameters, score, position = parameters_of(request), Score(), 0
        model, token = self._find(parameters, call)

        async def send(logprobs: Logprobs) -> None:
            nonlocal position
            await call.write(self._messages.scores(model, position, text, logprobs, spec.logprobs))
            position += len(logprobs)

        async def write(logprobs: Logprobs) -> None:
            await send(logprobs)
            score.add(logprobs.chosen)
            call.on_scored(len(logprobs))

        with self._clients.admit(context), model.in_flight:
            require_end(request, model)
            spec = await self._resolve(parameters, token, model, context)
            if request.texts:
                require_only_texts(request)
                async with model.slot() as slot:
                    call.on_slot(spec)
                    await score_texts(request, spec, model, slot, self._config, call)
                return
            text = await cut_text(request.text, model, self._config.max_score_chars, "text")
            spec = await score_spec_of(request, text, spec, model, self._config)
            async with model.slot() as slot:
                call.on_slot(spec)
                if spec.prompt_chars:
                    await send(NO_LOGPROB)
                snapshot = await read(model, slot, spec, text, write, request.include_end)
        total = pb.ScoreResponse.Total(
            chars=score.chars,
            logprob=score.logprob,
            bits_per_char=score.bits_per_char,
            perplexity=score.perplexity,
            resume_token=self._messages.token(model, spec, snapshot),
        )
        await call.write(pb.ScoreResponse(position=position, total=total))

    @_statuses
    async def ListModels(self, request: pb.ListModelsRequest, context: Context, call: Call) -> pb.ListModelsResponse:
        """List the models, and how busy the server is."""
        models = self._models.all
        return pb.ListModelsResponse(
            models=[_info(model) for model in self._models.served],
            streams_running=sum(model.slots.running for model in models),
            streams_waiting=sum(model.slots.waiting for model in models),
            streams_parked=sum(model.parked for model in models),
            draining=self.draining,
            max_streams=sum(model.slots.capacity for model in models),
        )

    def _find(self, parameters: GenerateParameters, call: Call) -> tuple[Model, OpenToken | None]:
        """Return the model of this name, else that of the token, else the default; and the token if it was opened."""
        if self.draining:
            raise DrainingError("the server is shutting down and takes no new streams")
        token = None
        if parameters.model:
            model = self._models.by_name(parameters.model)
        elif parameters.resume_token:
            token = self._tokens.open(parameters.resume_token)
            model = self._models.by_id_prefix(token.model_id)
        else:
            model = self._models.default
        call.on_model(model.metrics)
        return model, token

    async def _resolve(
        self, parameters: GenerateParameters, token: OpenToken | None, model: Model, context: Context
    ) -> StreamSpec:
        """Return the stream to run. Tell the client if its token is from a server whose texts may have other bits."""
        model.slots.require_capacity()
        resumption = None
        if parameters.resume_token:
            token = token or self._tokens.open(parameters.resume_token)
            resumption = token.resumption(model.bundle, model.numerics)
        spec = await spec_of(parameters, resumption, model, self._config)
        if resumption and not resumption.same_numerics:
            await context.send_initial_metadata((("rill-numerics", "differs"),))
        return spec

    async def _constrain(
        self, spec: StreamSpec, parameters: GenerateParameters, model: Model, context: Context, call: Call
    ) -> StreamSpec:
        """Return a stream with the automaton of its constraint, which is that of `parameters` or was there before."""
        pattern = parameters.constraint or unpacked(spec.constraint)
        call.constraint = pattern.kind
        caller = Caller(str(self._clients.client(context)), context.peer())
        is_from_token = parameters.constraint is None
        return await constrained(spec, pattern, model, self._compile_line, caller, is_from_token)


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
        state_bytes=bundle.state_bytes,
        numerics=model.numerics,
        vocabulary=bundle.vocabulary.symbols,
        tokenizer=bundle.vocabulary.tokenizer,
        start_symbol=bundle.vocabulary.start,
        end_symbols=bundle.vocabulary.ends,
        ngrams=bundle.model.get("ngrams", 0),
    )
