"""rill.v1's own actions and events over a session that outlives servers: in the order in which one call has them."""

from collections import deque
from collections.abc import Iterator

from rill.client.errors import SessionStateError
from rill.client.interaction import InteractProtocol
from rill.client.steps import Feed, Generation, Reply
from rill.v1 import rill_pb2 as pb

_Response = pb.InteractResponse


class Exchange:
    """Turns messages of rill.v1 into steps of `protocol`, and what has arrived into messages. No connections.

    A session makes snapshots of its own, and repeats steps in other calls: neither is seen here.
    """

    def __init__(self, protocol: InteractProtocol) -> None:
        self._protocol = protocol
        self._awaited: deque[Reply | Generation] = deque()  # in the order of their actions
        self._later: deque[pb.InteractRequest] = deque()  # actions behind a pause that has not taken effect
        self._may_pause = False

    @property
    def waiting(self) -> int:
        """How many actions were not answered yet."""
        return len(self._awaited) + len(self._later)

    @property
    def waiting_chars(self) -> int:
        """How many characters wait to be read by the model."""
        waiting = sum(len(action.feed) for action in self._later)
        return waiting + sum(len(step.text) for step in self._awaited if isinstance(step, Feed))

    def act(self, action: pb.InteractRequest) -> None:
        """Begin an action. Raises SessionStateError if it is out of order, and ServerError if the session has ended."""
        if self._later or self._is_pausing:
            self._later.append(action)
        else:
            self._begin(action)

    def events(self) -> Iterator[pb.InteractResponse]:
        """Yield what has arrived and was not yielded before. Raises what `act` does, for an action behind a pause."""
        while self._awaited:
            step = self._awaited[0]
            if not isinstance(step, Generation):
                if step.event is None:
                    return
                self._awaited.popleft()
                yield _event_of(step)
                continue
            while step.messages:
                yield _Response(output=step.messages.popleft())
            if not step.is_over:
                while len(self._awaited) > 1 and isinstance(reply := self._awaited[1], Reply) and reply.event:
                    del self._awaited[1]
                    yield _event_of(reply)
                return
            if step.error:
                return
            self._awaited.popleft()
            if step.is_pausing:
                yield self._paused()
            while self._later and not self._is_pausing:
                self._begin(self._later.popleft())

    @property
    def _is_pausing(self) -> bool:
        generation = self._protocol.generation
        return generation is not None and generation.is_pausing

    def _begin(self, action: pb.InteractRequest) -> None:
        protocol, kind = self._protocol, action.WhichOneof("action")
        match kind:
            case "feed":
                self._awaited.append(protocol.feed(action.feed))
            case "generate":
                self._awaited.append(protocol.generate(action.generate))
                self._may_pause = True
            case "pause":
                self._pause()
            case "update":
                protocol.update(action.update)
            case "snapshot":
                self._awaited.append(protocol.snapshot())
            case "open":
                raise SessionStateError("open: the session is open")
            case _:
                raise SessionStateError("the message has no action")

    def _pause(self) -> None:
        if not self._may_pause:
            raise SessionStateError("pause: nothing is generating, or it was paused already")
        self._may_pause = False
        if self._protocol.generation:
            self._protocol.pause()
        else:  # it has ended by itself
            answered = Reply()
            answered.event = self._paused().paused
            self._awaited.append(answered)

    def _paused(self) -> pb.InteractResponse:
        return _Response(paused=_Response.Paused(position=self._protocol.position))


def _event_of(reply: Reply) -> pb.InteractResponse:
    event = reply.event
    match event:
        case _Response.Fed():
            return _Response(fed=event)
        case _Response.Paused():
            return _Response(paused=event)
        case _:
            return _Response(snapshot=event)
