"""Interact: one live state, and the actions on it.

Between two actions the state is a snapshot, as in a resume token; each action is a stream of the engine that begins
there. An action that arrives while the model generates ends that stream at its current position, and another stream
continues the text: so an action takes effect within one engine round, and always between two characters that were sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

import numpy as np

from rill.serve.api.call import Call
from rill.serve.api.cutting import cut_text
from rill.serve.api.requests import GenerateParameters, check_text, parameters_of, spec_of
from rill.serve.api.responses import ResponseBuilder, event_of
from rill.serve.api.resume_tokens import Resumption
from rill.serve.api.score import Score, read, snapshot_of
from rill.serve.api.sender import TextSender
from rill.serve.config import ServerConfig
from rill.serve.constraints.automaton import Automaton
from rill.serve.engine.types import FinishReason, Logprobs, StreamSpec
from rill.serve.errors import DrainingError, IdleError, OutOfOrderError, RequestError, ServeError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb

AHEAD = 16  # actions that are read before their turn


class Inbox:
    """The actions of a call, in order, read a little ahead: `waiting` have arrived and were not taken."""

    def __init__(self, actions: AsyncIterator[pb.InteractRequest | RequestError]) -> None:
        self._actions = actions
        self._line: deque[pb.InteractRequest | RequestError] = deque()
        self._capacity = asyncio.Semaphore(AHEAD)
        self._changed = asyncio.Event()
        self._is_complete = self._is_draining = False
        self._error: Exception | None = None
        self.interrupt: Callable[[], object] | None = None  # called when an action arrives
        self._filling = asyncio.create_task(self._fill())

    @property
    def waiting(self) -> int:
        """The number of actions that can be taken at once."""
        return len(self._line)

    async def take(self) -> pb.InteractRequest | None:
        """Return the next action, or None if no more will arrive.

        Raises DrainingError, RequestError for a malformed action, and the error that ended the reading.
        """
        while not (self._line or self._is_complete or self._is_draining):
            self._changed.clear()
            await self._changed.wait()
        if self._is_draining:
            raise DrainingError("the server is shutting down; continue elsewhere from the resume token")
        if self._line:
            self._capacity.release()
            action = self._line.popleft()
            if isinstance(action, RequestError):  # not a valid message: `rill.serve.api.wire`
                raise action
            return action
        if self._error:
            raise self._error
        return None

    def drain(self) -> None:
        """Give out no more actions."""
        self._is_draining = True
        self._changed.set()

    def close(self) -> None:
        """Stop reading."""
        self._filling.cancel()

    async def _fill(self) -> None:
        try:
            async for action in self._actions:
                await self._capacity.acquire()
                self._line.append(action)
                self._changed.set()
                if self.interrupt:
                    self.interrupt()
        except Exception as error:  # of the connection
            self._error = error
        self._is_complete = True
        self._changed.set()


class Interaction:
    """The state of one call, in a slot of `model` that it holds alone.

    It is the state after the last action: an action that fails changes nothing. `constrain` gives a stream that has a
    constraint its automaton.
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
        constrain: Callable[[StreamSpec, GenerateParameters], Awaitable[StreamSpec]],
    ) -> None:
        self._model, self._slot, self._messages, self._config = model, slot, messages, config
        self._inbox, self._call, self._constrain = inbox, call, constrain
        self._state = Resumption(
            snapshot_of(spec, model),
            spec.seed,
            spec.sampling,
            spec.stops,
            spec.include_stop,
            same_numerics=True,
            constraint=spec.constraint,
            automaton=spec.automaton,
        )
        self._is_unfinished = bool(spec.stops)  # a generation was paused: its stops still apply
        self._may_pause = False  # one Pause for each Generate, which may just have ended by itself

    async def run(self) -> None:
        """Perform actions until the last one. Raises ServeError for an action that fails, after sending the state."""
        opened = pb.InteractResponse.Opened(seed=self._state.seed, model_id=self._model.bundle.model_id)
        await self._call.write(pb.InteractResponse(opened=opened))
        try:
            while (action := await self._next_action()) is not None:
                await self._perform(action)
        except DrainingError:
            state = self._state
            await self._write_output(self._messages.last(self._model, state, state.snapshot, FinishReason.DRAINING))
            raise
        except ServeError:
            await self._send_snapshot()
            raise

    async def _next_action(self) -> pb.InteractRequest | None:
        """Wait for the next action. Raises IdleError if none arrives within `idle_seconds`."""
        seconds = self._config.idle_seconds
        try:
            async with asyncio.timeout(seconds or None):
                return await self._inbox.take()
        except TimeoutError:
            raise IdleError(f"nothing was asked for {seconds:g} seconds; continue from the resume token") from None

    async def _perform(self, action: pb.InteractRequest) -> None:
        match action.WhichOneof("action"):
            case "feed":
                await self._feed(action.feed)
            case "generate":
                await self._generate(parameters_of(action.generate))
            case "pause" if not self._may_pause:
                raise OutOfOrderError("pause: nothing has been generated since the last one")
            case "pause":
                await self._pause()
            case "update":
                await self._update(parameters_of(action.update))
            case "snapshot":
                await self._send_snapshot()
            case "open":
                raise OutOfOrderError("open: this call is already open; make another call for another state")
            case _:
                raise RequestError("action", "an InteractRequest needs an action that this server knows")

    async def _update(self, parameters: GenerateParameters) -> None:
        spec = await self._spec(parameters)
        if spec.constraint:
            spec = await self._constrain(spec, parameters)
        self._state = replace(
            self._state,
            snapshot=replace(self._state.snapshot, automaton_state=spec.automaton_state),
            sampling=spec.sampling,
            seed=spec.seed,
            constraint=spec.constraint,
            automaton=spec.automaton,
        )

    async def _feed(self, text: str) -> None:
        text = await cut_text(text, self._model, self._config.max_prompt, "feed")
        await check_text(text, self._model, self._config.max_prompt, "feed")
        score = Score()

        async def add(logprobs: Logprobs) -> None:
            score.add(logprobs.chosen)

        snapshot = await read(self._model, self._slot, await self._spec(GenerateParameters()), text, add)
        self._call.on_prompt_read(score.chars)
        self._state = replace(self._state, snapshot=snapshot)
        fed = pb.InteractResponse.Fed(chars=score.chars, logprob=score.logprob)
        await self._call.write(pb.InteractResponse(fed=fed))

    async def _generate(self, parameters: GenerateParameters) -> None:
        """Generate until the limit, a stop, or a pause, and perform the actions that arrive meanwhile."""
        spec = await self._spec(parameters)
        if not (parameters.stops or self._is_unfinished):
            spec = replace(spec, stops=(), include_stop=False, partial_stop="")
        snapshot = replace(self._state.snapshot, partial_stop=spec.partial_stop)  # of these stops
        self._state = replace(self._state, snapshot=snapshot, stops=spec.stops, include_stop=spec.include_stop)
        self._may_pause = self._is_unfinished = True
        sender = TextSender(
            spec, self._model, self._messages, self._call, time.monotonic(), self._write_output, keeps_state=True
        )
        while await self._send(sender, spec) is FinishReason.PAUSED:
            if await self._interrupted():
                return
            spec = self._rest_of(spec)
        self._is_unfinished = False

    async def _send(self, sender: TextSender, spec: StreamSpec) -> FinishReason:
        """Send what `spec` generates until it ends or an action arrives; returns the reason. Raises DrainingError."""
        automaton = spec.automaton
        if automaton and not await self._acquire(automaton):
            return FinishReason.PAUSED
        try:
            with self._model.stream_in(self._slot, spec) as stream:
                self._inbox.interrupt = partial(self._model.engine.finish, stream, FinishReason.PAUSED)
                if self._inbox.waiting:
                    self._inbox.interrupt()
                reason = await sender.send(stream)
        finally:
            if automaton:
                self._model.automata.release(automaton)
            self._inbox.interrupt = None
            if sender.snapshot:
                self._state = replace(self._state, snapshot=sender.snapshot)
        if reason is FinishReason.DRAINING:
            raise DrainingError("the server is shutting down; the text ends early")
        return reason

    async def _acquire(self, automaton: Automaton) -> bool:
        """Wait until an automaton is in the model's tables; returns False if an action arrives first."""
        task, acquiring = asyncio.current_task(), asyncio.create_task(self._model.automata.acquire(automaton))
        assert task
        self._inbox.interrupt = acquiring.cancel
        if self._inbox.waiting:
            acquiring.cancel()
        try:
            await acquiring
        except asyncio.CancelledError:
            if acquiring.done() and not acquiring.cancelled() and not acquiring.exception():
                self._model.automata.release(automaton)  # the call was cancelled at the moment of success
            if task.cancelling():
                raise
            return False
        finally:
            self._inbox.interrupt = None
        return True

    async def _interrupted(self) -> bool:
        """Perform the actions that arrived during a generation; returns whether it is to pause."""
        while self._inbox.waiting:
            action = await self._inbox.take()
            assert action
            kind = action.WhichOneof("action")
            if kind in ("feed", "generate"):
                raise OutOfOrderError(f"{kind}: the model is generating; pause it, or wait for the end")
            await self._perform(action)
            if kind == "pause":
                return True
        return False

    def _rest_of(self, spec: StreamSpec) -> StreamSpec:
        """Return what remains of `spec` at the current state."""
        snapshot = self._state.snapshot
        return replace(
            spec,
            prompt=np.array([snapshot.token]),
            sampling=self._state.sampling,
            seed=self._state.seed,
            max_chars=spec.max_chars and spec.max_chars - (snapshot.position - spec.position),
            position=snapshot.position,
            text_position=snapshot.text_position,
            state=snapshot.state,
            partial_stop=snapshot.partial_stop,
            constraint=self._state.constraint,
            automaton=self._state.automaton,
            automaton_state=snapshot.automaton_state,
        )

    async def _pause(self) -> None:
        self._may_pause = False
        paused = pb.InteractResponse.Paused(position=self._state.snapshot.position)
        await self._call.write(pb.InteractResponse(paused=paused))

    async def _send_snapshot(self) -> None:
        snapshot = pb.InteractResponse.Snapshot(resume_token=self._token(), position=self._state.snapshot.position)
        await self._call.write(pb.InteractResponse(snapshot=snapshot))

    async def _write_output(self, message: pb.GenerateResponse | bytes) -> None:
        await self._call.write(event_of(message))

    async def _spec(self, parameters: GenerateParameters) -> StreamSpec:
        """Return the stream that a request for text would get at the current state."""
        return await spec_of(parameters, self._state, self._model, self._config)

    def _token(self) -> bytes:
        return self._messages.token(self._model, self._state, self._state.snapshot)
