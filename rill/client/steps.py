"""The steps of a session: actions that are repeated in another call until a token includes them."""

from collections import deque
from typing import Any

from rill.client.errors import ServerError
from rill.client.symbols import SymbolText
from rill.v1 import rill_pb2 as pb


class Reply:
    """The event that answers an action, once it has arrived."""

    def __init__(self) -> None:
        self.event: Any = None
        self.error: ServerError | None = None

    @property
    def is_ready(self) -> bool:
        """Tell whether `take` has something to return or raise."""
        return self.event is not None or self.error is not None

    def take(self) -> Any:
        """Return the event. Raises ServerError if the session ended without it."""
        if self.event is None and self.error:
            raise self.error
        return self.event


class Step:
    """An action that has to be repeated until a token includes it."""

    is_sent = False  # in the present call


class Feed(Step, Reply):
    """Text that the model reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Snapshot(Step, Reply):
    """A request for a resume token."""


class Update(Step):
    """A change of sampling parameters."""

    def __init__(self, sampling: pb.Sampling, is_amid: bool) -> None:
        self.sampling, self.is_amid = (
            sampling,
            is_amid,
        )  # amid a generation: a token may be of a text that it began anew

    @property
    def restarts(self) -> bool:
        """Tell whether repeating it would begin a constraint anew."""
        return self.sampling.HasField("constraint")


class Generation(Step):
    """A running generation: its messages, in order; `is_over` when there will be no more."""

    def __init__(self, action: pb.InteractRequest.Generate, start: int) -> None:
        self.action, self.start = action, start
        self.messages: deque[pb.GenerateResponse] = deque()
        self.error: ServerError | None = None
        self.is_over = self.is_pausing = False
        self.call = 0  # the number of the last one that it was sent in
        self.stale_stops_after: int | None = None  # after this call, a token brings back stop strings of the last one
        self.has_ended = False  # by itself: its stop strings do not apply to the next generation
        self.ahead = SymbolText()  # its text after the last token
        self.last_update: Update | None = None  # that was made while it ran
        self.held: list[pb.GenerateResponse] = []  # received while no token includes that update
        self.is_constrained = False  # so that its last message has to say whether it matches
        self.repeated_usage = pb.Usage()  # of its text, from a call that generated it again

    @property
    def is_ready(self) -> bool:
        """Tell whether `take` has something to return or raise."""
        return bool(self.messages) or self.is_over

    def take(self) -> pb.GenerateResponse | None:
        """Return the next message; None after the last. Raises ServerError if the session ended before that."""
        if self.messages:
            return self.messages.popleft()
        if self.error:
            raise self.error
        return None
