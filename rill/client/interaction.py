"""A live state over as many calls of `Interact` as it takes: what to send, which event answers what. No connections.

`InteractProtocol` keeps the last resume token and the steps that followed it. When a call breaks, the next one begins
with that token and repeats those steps; text that was delivered is compared and skipped. The loop around it is the same
in both kinds of session:

    connect: call the server number `protocol.address`, and pass what sends an action to `protocol.connected`
    pass each event to `received`
    when the call has ended: after as many seconds as `ended` returns, connect again; None means that it is over

An action that the server answers returns a `Reply` or a `Generation`: call `take` once it `is_ready`.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from rill.client.errors import ServerError, SessionStateError, too_old_for_constraints
from rill.client.retry import RETRY_SECONDS, Attempts, FirstContact
from rill.client.steps import Feed, Generation, Reply, Snapshot, Step, Update
from rill.client.symbols import checked_lengths, symbol_count, text_position
from rill.v1 import rill_pb2 as pb

SNAPSHOT_EVERY = 1024  # characters: at most so many are generated again, and those on their way
NO_STOP = "\0"  # replaces stop strings where an empty list means those of the token; it occurs in no text

_Request = pb.InteractRequest
_LAST = (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)


class InteractProtocol(Attempts):
    """One session. Methods raise ServerError if it has ended, and SessionStateError if the action is out of order.

    `position` counts the generated characters, and `text_position` code points, once text has arrived. `resume_token`
    is the last state that a server gave, after `resume_position` characters. `on_interrupted` is called with the first
    failure of each outage.
    """

    def __init__(
        self,
        opening: pb.InteractRequest.Open,
        addresses: int = 1,
        retry_seconds: float = RETRY_SECONDS,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        contact: FirstContact | None = None,
        on_interrupted: Callable[[ServerError], None] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(addresses, retry_seconds, timeout, clock, contact)
        self.request_id = request_id
        self.seed, self.model_id = 0, ""
        self.position = self.resume_position = 0
        self.text_position = 0
        self.resume_token = b""
        self.error: ServerError | None = None  # why the session ended, if it did
        self._opening, self._on_interrupted = opening, on_interrupted
        self._steps: list[Feed | Snapshot | Update | Generation] = []  # those that no token includes, in order
        self._generation: Generation | None = None  # the last one
        self._is_started = False
        self._is_constrained = _begins_constraint(opening.sampling)  # as far as is known: a token may have one, too
        # The present call.
        self._send: Callable[[pb.InteractRequest | None], None] | None = None
        self._is_open = False
        self._awaited: deque[Feed | Snapshot] = deque()
        self._at = 0
        self._catching_up: Generation | None = None
        self._caught_up = False
        self._calls = 0

    @property
    def generation(self) -> Generation | None:
        """The generation that is running."""
        return self._generation if self._generation and not self._generation.is_over else None

    @property
    def is_idle(self) -> bool:
        """Tell whether the present call is open and neither reads nor generates: it ends after its last action."""
        is_reading = any(isinstance(step, Feed) for step in self._awaited)
        return self._is_open and not (self.error or self.generation or self._catching_up or is_reading)

    def open(self) -> Reply:
        """Begin the session. The reply is a snapshot of its first state."""
        self._is_started = True
        return self._snapshot_step()

    def feed(self, text: str) -> Reply:
        """Let the model read a text."""
        self._check_idle("feed")
        step = Feed(text)
        self._add(step)
        self._snapshot_step()
        return step

    def generate(self, action: pb.InteractRequest.Generate) -> Generation:
        """Let the model generate text."""
        self._check_idle("generate")
        generation, before = Generation(action, self.position), self._generation
        generation.is_constrained = self._is_constrained
        if before and before.has_ended and before.action.stop and not action.stop:
            generation.stale_stops_after = before.call
        self._add(generation)
        self._generation = generation
        return generation

    def pause(self) -> None:
        """End the running generation, if there is one, where it is."""
        generation = self.generation
        if not generation or generation.is_pausing:
            return
        generation.is_pausing = True
        if self._is_open and generation.is_sent and generation is not self._catching_up:
            self._act(pause=_Request.Pause())
            self._snapshot_step()
        else:
            self._end_here(generation)

    def update(self, sampling: pb.Sampling) -> None:
        """Change sampling parameters.

        Where in a running generation that takes effect is known once a token includes it. Until then what is received
        is held back: if the call breaks, it is generated again.
        """
        generation = self.generation
        step = Update(sampling, is_amid=generation is not None and not generation.is_pausing)
        self._add(step)
        if step.restarts:
            self._is_constrained = _begins_constraint(sampling)
        if generation and step.is_amid:
            generation.last_update = step
            generation.is_constrained = generation.is_constrained and not step.restarts
            self._snapshot_step()

    def snapshot(self) -> Reply:
        """Request the state as a token."""
        return self._snapshot_step()

    def close(self) -> None:
        """End the session."""
        self._finish(ServerError(grpc.StatusCode.CANCELLED, "the session is closed"))

    def connected(self, send: Callable[[pb.InteractRequest | None], None]) -> None:
        """Begin the next call; `send` takes its actions, and None after the last."""
        self._send, self._is_open = send, False
        self._awaited.clear()
        self._calls += 1
        self._at, self._catching_up, self._caught_up = self.resume_position, None, False
        for step in self._steps:
            step.is_sent = False
        opening = _Request.Open()
        opening.CopyFrom(self._opening)
        for step in self._steps:  # only here does a server always say why it refuses one
            if not isinstance(step, Update):
                break
            _merge(opening.sampling, step.sampling)
            step.is_sent = True
        self._act(open=opening)

    def received(self, event: pb.InteractResponse) -> None:
        """Handle an event."""
        if self.error:
            return
        try:
            match event.WhichOneof("event"):
                case "opened":
                    self._opened(event.opened)
                case "fed":
                    self._fed(event.fed)
                case "output":
                    self._output(event.output)
                case "paused":
                    self._paused()
                case "snapshot":
                    self._snapshot(event.snapshot)
        except ServerError as error:
            self._finish(error)

    def ended(self, error: ServerError | None) -> float | None:
        """Return the seconds to wait before the next call, now that one has ended; None if the session is over."""
        if self.error:
            return None
        self._send, self._is_open = None, False
        if self._caught_up:
            return 0.0
        failure = error or ServerError.ended_early()
        try:
            delay = self.failed(failure, f"the session broke after {self.position:,} characters")
        except ServerError as final:
            self._finish(final)
            return None
        if generation := self.generation:
            generation.held.clear()
            if generation.is_pausing:
                self._end_here(generation)
        if self.is_interrupted and self._on_interrupted:
            self._on_interrupted(failure)
        return delay

    # Events.

    def _opened(self, opened: pb.InteractResponse.Opened) -> None:
        if not self.model_id:
            self.seed, self.model_id = opened.seed, opened.model_id
            self._opening.sampling.seed = opened.seed
        self._is_open = True
        self._send_steps()

    def _fed(self, fed: pb.InteractResponse.Fed) -> None:
        if self._awaited and isinstance(self._awaited[0], Feed):
            step = self._awaited.popleft()
            if not step.event:
                step.event = fed
                self.progressed()
            self._send_steps()

    def _snapshot(self, snapshot: pb.InteractResponse.Snapshot) -> None:
        done = None
        if self._awaited and isinstance(self._awaited[0], Snapshot):  # else it precedes an error
            done = self._awaited.popleft()
            done.event = snapshot
            self.progressed()
        self._include(snapshot.resume_token, snapshot.position, done)

    def _paused(self) -> None:
        if generation := self.generation:
            generation.is_over = True

    def _output(self, message: pb.GenerateResponse) -> None:
        if message.position != self._at:
            raise _data_loss(f"a message begins at character {message.position:,} instead of {self._at:,}")
        checked_lengths(message)
        self._at += symbol_count(message)
        is_last = message.finish_reason in _LAST
        running = self._catching_up or self.generation
        if is_last and running and running.is_constrained and not message.usage.HasField("matches"):
            raise too_old_for_constraints()
        is_draining = message.finish_reason == pb.FINISH_REASON_DRAINING
        if self._catching_up:
            self._catch_up(self._catching_up, message, is_last)
        elif generation := self.generation:
            self._extend(generation, message)
            if is_last and generation is self._steps[-1] and message.resume_token:
                self._include(message.resume_token, self._at, generation)
        if is_draining and message.resume_token:
            self._include(message.resume_token, self._at, None)

    def _catch_up(self, generation: Generation, message: pb.GenerateResponse, is_last: bool) -> None:
        """Compare a message with the text that was delivered. After its end, another call continues."""
        lengths = list(message.symbol_lengths)
        if not generation.ahead.has(message.text, lengths, message.position - self.resume_position):
            raise _data_loss("one continued with another text: they have different models or different numerics")
        if is_last:
            if self._at != self.resume_position + len(generation.ahead) or not message.resume_token:
                raise _data_loss(f"one ends it after {self._at:,} characters")
            generation.repeated_usage = message.usage
            if message.finish_reason == pb.FINISH_REASON_STOP and not generation.is_over:  # only this message was lost
                self._release_end(generation, self._at, message.finish_reason)
            self._include(message.resume_token, self._at, generation)
            self._caught_up = True
            if self._send:
                self._send(None)

    def _extend(self, generation: Generation, message: pb.GenerateResponse) -> None:
        if message.position != generation.start:
            message.ClearField("seed")  # on the first message only
        if message.finish_reason == pb.FINISH_REASON_DRAINING and self._retry_seconds:
            message.ClearField("finish_reason")
        if not (message.text or message.finish_reason):
            return
        if generation.last_update in self._steps:
            generation.held.append(message)
            return
        self._release(generation, message)
        if len(generation.ahead) >= SNAPSHOT_EVERY and generation is self._steps[-1] and not message.finish_reason:
            self._snapshot_step()

    def _release(self, generation: Generation, message: pb.GenerateResponse) -> None:
        generation.messages.append(message)
        self.position = message.position + symbol_count(message)
        message.text_position = text_position(message)
        self.text_position = message.text_position + len(message.text)
        generation.ahead.append(message.text, list(message.symbol_lengths))
        if message.finish_reason in _LAST:
            generation.has_ended = True
            generation.is_over = not generation.is_pausing
        if message.text:
            self.progressed()

    def _release_end(
        self, generation: Generation, position: int, reason: pb.FinishReason, resume_token: bytes = b""
    ) -> None:
        """Release a last message in place of one that was lost."""
        message = pb.GenerateResponse(position=position, finish_reason=reason, resume_token=resume_token)
        if generation.repeated_usage.HasField("matches"):
            message.usage.matches = generation.repeated_usage.matches
        message.text_position = self.text_position
        self._release(generation, message)

    # Steps.

    def _include(self, token: bytes, position: int, done: Step | None) -> None:
        """Forget the steps that a token includes: all up to `done`, or all before the first unanswered one."""
        updates = [step for step in self._steps if isinstance(step, Update) and step.is_sent]
        if not done and any(update.is_amid and update.restarts for update in updates):
            return  # whether it includes that update is not known, and here it matters
        if done:
            count = next(at for at, step in enumerate(self._steps, 1) if step is done)
        else:
            undone = (step for step in self._steps if not step.is_sent or step in self._awaited)
            count = self._steps.index(first) if (first := next(undone, None)) else len(self._steps)
        included, self._steps = self._steps[:count], self._steps[count:]
        self._opening = _Request.Open(resume_token=token)
        for step in included:
            if isinstance(step, Update):
                # Repeat it with the token: a server that refused the update may have answered a later snapshot with the
                # state before it. If the token does include it, that changes nothing, unless it has text since.
                _merge(self._opening.sampling, step.sampling)
                if step.is_amid:
                    _drop_constraint(self._opening)
            elif isinstance(step, Generation):
                if position > step.start:
                    _drop_constraint(self._opening)
                for message in step.held:
                    self._release(step, message)
                step.held.clear()
                step.ahead.drop(position - self.resume_position)
                if step.ahead or not step.is_over:
                    self._steps.insert(0, step)
        if not self.resume_token:
            self.position = self._at = position
        self.resume_token, self.resume_position = token, position

    def _add(self, step: Feed | Snapshot | Update | Generation) -> None:
        if self.error:
            raise self.error
        if not self._is_started:
            raise SessionStateError("the session is not open: use it in a with statement")
        self._steps.append(step)
        self._send_steps()

    def _snapshot_step(self) -> Snapshot:
        step = Snapshot()
        self._add(step)
        return step

    def _send_steps(self) -> None:
        """Send the steps that were not sent in this call. Delivered text is generated first, in a call of its own."""
        if not self._is_open or self._catching_up:
            return
        for step in [step for step in self._steps if not step.is_sent]:
            if self._awaited and isinstance(self._awaited[-1], Feed):
                return  # where a feed is refused, gRPC for asyncio loses the reason if another action is on its way
            match step:
                case Feed():
                    self._act(feed=step.text)
                    self._awaited.append(step)
                case Snapshot():
                    self._act(snapshot=_Request.Snapshot())
                    self._awaited.append(step)
                case Update():
                    self._act(update=step.sampling)
                case Generation() if step.ahead:
                    self._catching_up = step
                    self._generate(step, max_chars=len(step.ahead), chars_per_second=0.0, logprobs=None)
                    step.is_sent = True
                    return
                case Generation() if not step.is_over:
                    self._continue(step)
            step.is_sent = True

    def _continue(self, generation: Generation) -> None:
        """Generate the rest of a generation."""
        count = generation.action.max_chars
        left = count and count - (self.position - generation.start)
        if count and not left:  # only its last message was lost
            self._release_end(generation, self.position, pb.FINISH_REASON_LENGTH, self.resume_token)
            self._end_here(generation)
            return
        self._generate(generation, max_chars=left)

    def _generate(self, generation: Generation, **changes: Any) -> None:
        action = _Request.Generate()
        action.CopyFrom(generation.action)
        for name, value in changes.items():
            action.ClearField(name) if value is None else setattr(action, name, value)
        if generation.stale_stops_after not in (None, self._calls):
            action.stop.append(NO_STOP)
        generation.call = self._calls
        self._act(generate=action)

    def _act(self, **action: Any) -> None:
        if self._send:
            self._send(_Request(**action))

    def _end_here(self, generation: Generation) -> None:
        """End a generation after what was delivered."""
        generation.is_over = True
        if not generation.ahead and generation in self._steps:
            self._steps.remove(generation)

    def _check_idle(self, action: str) -> None:
        if self.generation:
            raise SessionStateError(f"{action}: the model is generating; pause it, or read to its end")

    def _finish(self, error: ServerError) -> None:
        """End the session. All pending replies get the error."""
        if self.error:
            return
        error.resume_token = self.resume_token
        error.told(self.request_id)
        self.error = error
        for step in self._steps:
            if isinstance(step, Feed | Snapshot):
                step.error = error
        if generation := self.generation:
            for message in generation.held:
                self._release(generation, message)
            generation.error, generation.is_over = error, True


def _merge(sampling: pb.Sampling, update: pb.Sampling) -> None:
    """Apply an update as servers do: a `logit_bias` or a `constraint` replaces the one before."""
    if update.logit_bias:
        sampling.ClearField("logit_bias")
    if update.HasField("constraint"):
        sampling.ClearField("constraint")
    sampling.MergeFrom(update)


def _drop_constraint(opening: pb.InteractRequest.Open) -> None:
    """Leave a constraint to the token, which knows how far it is."""
    if opening.sampling.HasField("constraint"):
        opening.sampling.ClearField("constraint")


def _begins_constraint(sampling: pb.Sampling) -> bool:
    return sampling.constraint.WhichOneof("kind") is not None


def _data_loss(difference: str) -> ServerError:
    return ServerError(grpc.StatusCode.DATA_LOSS, f"the servers do not produce the same text: {difference}")
