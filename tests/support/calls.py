"""Calls of the service by gRPC itself, and what comes of them."""

import queue

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from rill import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

Request = pb.InteractRequest


def text_of(target: str, prompt: str) -> str:
    """What a client gets for `prompt`. Processes that a test starts find it here, whatever else is called `tests`."""
    with Client(target) as client:
        return "".join(client.generate(prompt))


def refusal(call):
    """The status of a call that must fail, and its details by type."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    details = {}
    for key, value in caught.value.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for packed in Status.FromString(value).details:
                for kind in (BadRequest, RetryInfo):
                    message = kind()
                    if packed.Unpack(message):
                        details[kind] = message
    return caught.value, details


def joined(messages):
    return "".join(message.text for message in messages)


def check_messages(messages, start, every):
    """They follow one another, and none but the first is further from a token than asked."""
    position, since = start, 0
    assert len(messages[0].text) <= 1
    for message in messages:
        assert message.position == position
        position += len(message.text)
        since += len(message.text)
        if message.resume_token:
            since = 0
        elif every and message is not messages[0]:
            assert since < every
    assert messages[-1].resume_token
    assert all(message.text for message in messages[:-1])


class Talk:
    """One call of Interact: actions go out when they are told, events are read one by one."""

    def __init__(self, target, timeout=60):
        self.channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        self._actions = queue.SimpleQueue()
        self.call = TextGenerationStub(self.channel).Interact(iter(self._actions.get, None), timeout=timeout)

    def tell(self, **action):
        self._actions.put(Request(**action))

    def end(self):
        """Half-close."""
        self._actions.put(None)

    def event(self, kind):
        """The next event, which must be of this kind."""
        event = next(self.call)
        assert event.WhichOneof("event") == kind, event
        return getattr(event, kind)

    def open(self, token=b"", model="", **sampling):
        self.tell(open=Request.Open(model=model, resume_token=token, sampling=pb.Sampling(**sampling)))
        return self.event("opened")

    def feed(self, text):
        self.tell(feed=text)
        return self.event("fed")

    def snapshot(self):
        self.tell(snapshot=Request.Snapshot())
        return self.event("snapshot")

    def begin(self, **parameters):
        self.tell(generate=Request.Generate(**parameters))

    def generate(self, **parameters):
        """All messages of a generation that ends by itself."""
        self.begin(**parameters)
        messages = [self.event("output")]
        while not messages[-1].finish_reason:
            messages.append(self.event("output"))
        return messages

    def until(self, kind):
        """The text that comes before an event of this kind, and that event."""
        text = ""
        while (event := next(self.call)).WhichOneof("event") == "output":
            text += event.output.text
        assert event.WhichOneof("event") == kind
        return text, getattr(event, kind)

    def pause(self):
        self.tell(pause=Request.Pause())
        return self.until("paused")

    def error(self):
        """The status that ends the call: code and detail."""
        with pytest.raises(grpc.RpcError) as caught:
            raise AssertionError(next(self.call))
        details = dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        for packed in Status.FromString(details).details:
            for kind in (BadRequest, ErrorInfo):
                detail = kind()
                if packed.Unpack(detail):
                    return caught.value.code(), detail
        return caught.value.code(), None


def generate(**parameters):
    return {"generate": Request.Generate(**parameters)}
