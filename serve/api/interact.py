"""Interact: one live state, and the actions on it.

Between two actions the state is a snapshot, as in a resume token; each action is a stream of the engine that begins
there. What comes while the model generates ends that stream where it is, and another goes on with the same text: so an
action takes effect within one engine round, and always between two characters that have been sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from rill.serve.api.call import Call
from rill.serve.api.requests import spec_of
from rill.serve.api.responses import FINISH, CallTimes, ResponseBuilder, event_of
from rill.serve.api.resume_tokens import Resumption
from rill.serve.api.score import Floats, Score, given_text, read, snapshot_of
from rill.serve.config import ServerConfig
from rill.serve.engine.types import FinishReason, StreamSpec
from rill.serve.errors import DrainingError, OutOfOrderError, RequestError, ServeError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

AHEAD = 16  # actions that are read before it is their turn


class Inbox:
    """The actions of a call, in order, read a little ahead: `waiting` have come and were not taken."""

    def __init__(self, actions: AsyncIterator[pb.InteractRequest | RequestError]) -> None:
        self._actions = actions
        self._line: deque[pb.InteractRequest | RequestError] = deque()
        self._places = asyncio.Semaphore(AHEAD)
        self._news = asyncio.Event()
        self._is_over = self._is_draining = False
        self._error: Exception | None = None
        self.interrupt: Callable[[], None] | None = None  # called when an action comes
        self._filling = asyncio.create_task(self._fill())

    @property
    def waiting(self) -> int:
        """Actions that can be taken at once."""
        return len(self._line)

    async def take(self) -> pb.InteractRequest | None:
        """The next action, or None if no more will come.

        Raises DrainingError, RequestError for what is no action, and what kept it from reading on.
        """
        while not (self._line or self._is_over or self._is_draining):
            self._news.clear()
            await self._news.wait()
        if self._is_draining:
            raise DrainingError("the server is going away; the state goes on elsewhere, from its token")
        if self._line:
            self._places.release()
            action = self._line.popleft()
            if isinstance(action, RequestError):  # bytes that are no InteractRequest: `rill.serve.api.wire`
                raise action
            return action
        if self._error:
            raise self._error
        return None

    def drain(self) -> None:
        """Nothing is taken any more."""
        self._is_draining = True
        self._news.set()

    def close(self) -> None:
        """Stop reading."""
        self._filling.cancel()

    async def _fill(self) -> None:
        try:
            async for action in self._actions:
                await self._places.acquire()
                self._line.append(action)
                self._news.set()
                if self.interrupt:
                    self.interrupt()
        except Exception as error:  # the connection's
            self._error = error
        self._is_over = True
        self._news.set()


class Interaction:
    """The state of one call, in a slot of `model` that it has for itself.

    It stands where the last action has left it: an action that fails changes nothing.
    """

    def __init__(
        self,
        model: Model,
        slot: int,
        spec: StreamSpec,
        messages: ResponseBuilder,
        config: ServerConfig,
        inbox: Inbox,
        call: Call,
    ) -> None:
        self._model, self._slot, self._messages, self._config = model, slot, messages, config
        self._inbox, self._call = inbox, call
        self._at = Resumption(
            snapshot_of(spec, model), spec.seed, spec.sampling, spec.stops, spec.include_stop, same_numerics=True
        )
        self._goes_on = bool(spec.stops)  # a generation has not come to its end: it still has its stops
        self._may_pause = False  # one Pause for each Generate, which may have ended meanwhile

    async def run(self) -> None:
        """Do what is asked until nothing more is. Raises RillError for what cannot be, after the state was sent."""
        opened = pb.InteractResponse.Opened(seed=self._at.seed, model_id=self._model.bundle.model_id)
        await self._call.write(pb.InteractResponse(opened=opened))
        try:
            while (action := await self._inbox.take()) is not None:
                await self._do(action)
        except DrainingError:
            last = self._at.snapshot
            await self._output(
                pb.GenerateResponse(
                    position=last.position, resume_token=self._token(), finish_reason=pb.FINISH_REASON_DRAINING
                )
            )
            raise
        except ServeError:
            await self._send_snapshot()
            raise

    async def _do(self, action: pb.InteractRequest) -> None:
        match action.WhichOneof("action"):
            case "feed":
                await self._feed(action.feed)
            case "generate":
                await self._generate(action.generate)
            case "pause" if not self._may_pause:
                raise OutOfOrderError("pause: nothing has been generated since the last one")
            case "pause":
                await self._pause()
            case "update":
                self._update(action.update)
            case "snapshot":
                await self._send_snapshot()
            case "open":
                raise OutOfOrderError("open: this call has been opened before; begin another call for another state")
            case _:
                raise RequestError("action", "an InteractRequest needs an action that this server knows")

    async def _feed(self, text: str) -> None:
        given = await given_text(text, self._model, self._config.max_prompt, "feed")
        score = Score()

        async def add(logprobs: Floats) -> None:
            score.add(logprobs)

        snapshot = await read(self._model, self._slot, self._spec(pb.GenerateRequest()), given, add)
        self._call.read(score.chars)
        self._at = replace(self._at, snapshot=snapshot)
        fed = pb.InteractResponse.Fed(chars=score.chars, logprob=score.logprob)
        await self._call.write(pb.InteractResponse(fed=fed))

    async def _generate(self, asked: pb.InteractRequest.Generate) -> None:
        """Until its limit, a stop, or pause; meanwhile other actions are done."""
        request = pb.GenerateRequest(
            max_chars=asked.max_chars,
            stop=asked.stop,
            include_stop=asked.include_stop,
            chars_per_second=asked.chars_per_second,
        )
        if asked.HasField("logprobs"):
            request.logprobs = asked.logprobs
        spec = self._spec(request)
        if not (asked.stop or self._goes_on):
            spec = replace(spec, stops=(), include_stop=False, partial_stop="")
        snapshot = replace(self._at.snapshot, partial_stop=spec.partial_stop)  # of these stops, if at all
        self._at = replace(self._at, snapshot=snapshot, stops=spec.stops, include_stop=spec.include_stop)
        self._may_pause = self._goes_on = True
        times, first, end = CallTimes(time.monotonic()), spec.position, FinishReason.PAUSED
        while end is FinishReason.PAUSED:
            end = await self._make(spec, times, first)
            if end is FinishReason.PAUSED:
                if await self._interrupted():
                    return
                spec = self._rest_of(spec)
        self._goes_on = False

    async def _make(self, spec: StreamSpec, times: CallTimes, first: int) -> FinishReason:
        """Send what `spec` makes of a generation that began at position `first`; returns how that ended."""
        end = None
        with self._model.stream_in(self._slot, spec) as stream:
            self._inbox.interrupt = partial(self._model.engine.finish, stream, FinishReason.PAUSED)
            if self._inbox.waiting:
                self._inbox.interrupt()
            while end is None:
                piece, end = await stream.next_piece()
                times.note(stream)
                message = self._messages.output(self._model, stream, piece)
                if stream.position == first:
                    message.seed = spec.seed
                if end in (FinishReason.LENGTH, FinishReason.STOP):
                    message.finish_reason = FINISH[end]
                    message.usage.CopyFrom(times.usage(0, stream.position + len(piece.text) - first))
                if piece.text or message.finish_reason:
                    await self._output(self._messages.with_logprobs(message, self._model, stream, piece))
                    self._model.mark_sent(stream, piece.text)
                    self._call.generated(times, len(piece.text))
                if piece.snapshot:
                    self._at = replace(self._at, snapshot=piece.snapshot)
        self._inbox.interrupt = None
        if end is FinishReason.DRAINING:
            raise DrainingError("the server is going away; the text ends early")
        return end

    async def _interrupted(self) -> bool:
        """Do what was asked for in the midst of a generation; whether that is to pause."""
        while self._inbox.waiting:
            action = await self._inbox.take()
            assert action
            kind = action.WhichOneof("action")
            if kind in ("feed", "generate"):
                raise OutOfOrderError(f"{kind}: the model is generating; pause it, or wait for its end")
            await self._do(action)
            if kind == "pause":
                return True
        return False

    def _rest_of(self, spec: StreamSpec) -> StreamSpec:
        """What is left of `spec` where the state stands now."""
        snapshot = self._at.snapshot
        left = spec.max_chars and spec.max_chars - (snapshot.position - spec.position)
        plain = self._spec(pb.GenerateRequest())
        return replace(
            spec,
            prompt=plain.prompt,
            sampling=plain.sampling,
            seed=plain.seed,
            max_chars=left,
            position=snapshot.position,
            state=snapshot.state,
            partial_stop=snapshot.partial_stop,
        )

    async def _pause(self) -> None:
        self._may_pause = False
        paused = pb.InteractResponse.Paused(position=self._at.snapshot.position)
        await self._call.write(pb.InteractResponse(paused=paused))

    def _update(self, sampling: pb.Sampling) -> None:
        spec = self._spec(pb.GenerateRequest(sampling=sampling))
        self._at = replace(self._at, sampling=spec.sampling, seed=spec.seed)

    async def _send_snapshot(self) -> None:
        snapshot = pb.InteractResponse.Snapshot(resume_token=self._token(), position=self._at.snapshot.position)
        await self._call.write(pb.InteractResponse(snapshot=snapshot))

    async def _output(self, message: pb.GenerateResponse | bytes) -> None:
        await self._call.write(event_of(message))

    def _spec(self, request: pb.GenerateRequest) -> StreamSpec:
        """What a request for text would mean here."""
        return spec_of(request, self._at, self._model, self._config)

    def _token(self) -> bytes:
        spec = self._spec(pb.GenerateRequest())
        return self._messages.token(self._model, spec, self._at.snapshot)
