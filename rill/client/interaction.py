"""The client's side of one `Interact` call, without a connection: which event answers which action.

Actions go out in order, through the `send` of an `InteractProtocol`. Events go to `received`, the end of the call to
`ended`. An action that the server answers returns a `Reply` or a `Generation`; wait for its `is_ready`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from rill.client.errors import ENDED_EARLY, ServerError, SessionStateError
from rill.v1 import rill_pb2 as pb

_Request = pb.InteractRequest


class Reply:
    """The event that answers an action, as soon as it is there."""

    def __init__(self) -> None:
        self.event: Any = None
        self.error: ServerError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return self.event is not None or self.error is not None

    def take(self) -> Any:
        """The event. Raises ServerError if the call ended without it."""
        if self.event is None and self.error:
            raise self.error
        return self.event


class Generation:
    """The messages of a running generation, in order; `is_over` when the server has sent all of them."""

    def __init__(self) -> None:
        self.messages: deque[pb.GenerateResponse] = deque()
        self.error: ServerError | None = None
        self.is_over = self.is_pausing = self._has_ended = False

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self.messages) or self.is_over

    def take(self) -> pb.GenerateResponse | None:
        """The next message; None after the last. Raises ServerError if the call ended in the midst of it."""
        if self.messages:
            return self.messages.popleft()
        if self.error:
            raise self.error
        return None

    def add(self, message: pb.GenerateResponse) -> None:
        """A message came. A Pause that crossed the last one is still to be answered."""
        self.messages.append(message)
        self._has_ended = message.finish_reason in (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP)
        self.is_over = self._has_ended and not self.is_pausing


class InteractProtocol:
    """One call of `Interact`.

    Methods raise ServerError if the call has ended, and SessionStateError if the state does not allow the action.
    `position` counts the generated characters, `resume_token` is the last state that the server gave, after
    `resume_position` of them.
    """

    def __init__(self, send: Callable[[pb.InteractRequest], None]) -> None:
        self.seed, self.model_id = 0, ""
        self.position = self.resume_position = 0
        self.resume_token = b""
        self.error: ServerError | None = None  # why the call ended, if it did
        self._send = send
        self._generation: Generation | None = None
        self._asked: dict[str, deque[Reply]] = {"opened": deque(), "fed": deque(), "snapshot": deque()}

    @property
    def generation(self) -> Generation | None:
        """The one that is running."""
        return self._generation if self._generation and not self._generation.is_over else None

    def open(self, model: str, resume_token: bytes, sampling: pb.Sampling) -> Reply:
        """Begin."""
        begin = _Request.Open(model=model, resume_token=resume_token, sampling=sampling)
        return self._ask(_Request(open=begin), "opened")

    def feed(self, text: str) -> Reply:
        """Let the model read a text."""
        self._check_idle("feed")
        return self._ask(_Request(feed=text), "fed")

    def generate(
        self,
        max_chars: int = 0,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        logprobs: int | None = None,
        chars_per_second: float = 0.0,
    ) -> Generation:
        """Let it write."""
        self._check_idle("generate")
        self._tell(
            _Request(
                generate=_Request.Generate(
                    max_chars=max_chars,
                    stop=stop,
                    include_stop=include_stop,
                    logprobs=logprobs,
                    chars_per_second=chars_per_second,
                )
            )
        )
        self._generation = Generation()
        return self._generation

    def pause(self) -> None:
        """End the running generation, if there is one, where it is."""
        if (generation := self.generation) and not generation.is_pausing:
            self._tell(_Request(pause=_Request.Pause()))
            generation.is_pausing = True

    def update(self, sampling: pb.Sampling) -> None:
        """Change what is set there."""
        self._tell(_Request(update=sampling))

    def snapshot(self) -> Reply:
        """Ask for the state as a token."""
        return self._ask(_Request(snapshot=_Request.Snapshot()), "snapshot")

    def received(self, event: pb.InteractResponse) -> None:
        """An event came."""
        kind = event.WhichOneof("event")
        match kind:
            case "opened":
                self.seed, self.model_id = event.opened.seed, event.opened.model_id
            case "output":
                self._output(event.output)
            case "paused" if self._generation:
                self.position = event.paused.position
                self._generation.is_over = True
            case "snapshot":
                self.position = event.snapshot.position
                self._state(event.snapshot.resume_token, event.snapshot.position)
        # A snapshot that nobody asked for comes before an error.
        if waiting := self._asked.get(kind or ""):
            waiting.popleft().event = getattr(event, kind)

    def ended(self, error: ServerError | None) -> None:
        """The call is over: no more will come."""
        if self.error:
            return
        self.error = error or ServerError(grpc.StatusCode.UNAVAILABLE, ENDED_EARLY)
        for asked in self._asked.values():
            while asked:
                asked.popleft().error = self.error
        if generation := self.generation:
            generation.error = self.error
            generation.is_over = True

    def _output(self, message: pb.GenerateResponse) -> None:
        self.position = message.position + len(message.text)
        if message.resume_token:
            self._state(message.resume_token, self.position)
        if self.generation:  # else a server that drains says so
            self.generation.add(message)

    def _state(self, token: bytes, position: int) -> None:
        self.resume_token, self.resume_position = token, position

    def _check_idle(self, what: str) -> None:
        if self.generation:
            raise SessionStateError(f"{what}: the model is generating; pause it, or read to its end")

    def _ask(self, request: pb.InteractRequest, kind: str) -> Reply:
        self._tell(request)
        answer = Reply()
        self._asked[kind].append(answer)
        return answer

    def _tell(self, request: pb.InteractRequest) -> None:
        if self.error:
            raise self.error
        self._send(request)
