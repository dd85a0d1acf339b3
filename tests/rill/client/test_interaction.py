"""Which event of an Interact call answers which action, however the two cross."""

from collections import deque

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.client.errors import ServerError, SessionStateError
from rill.client.interaction import InteractProtocol
from rill.v1 import rill_pb2 as pb

Event, Output = pb.InteractResponse, pb.GenerateResponse
LENGTH, DRAINING = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_DRAINING


class MadeUpServer:
    """What rill.proto says of Interact, one step at a time; the n-th generation is a text of the n-th letter."""

    def __init__(self):
        self.actions, self.events = deque(), deque()
        self.position = self.snapshots = self.generations = self.left = 0
        self.is_generating = self.may_pause = False
        self.made = []

    def act(self):
        """Do the next action, if it is its turn."""
        action = self.actions.popleft()
        match action.WhichOneof("action"):
            case "open":
                self.events.append(Event(opened=Event.Opened(seed=7, model_id="tiny")))
            case "feed":
                assert not self.is_generating
                self.events.append(Event(fed=Event.Fed(chars=len(action.feed))))
            case "generate":
                assert not self.is_generating
                self.left, self.is_generating, self.may_pause = action.generate.max_chars, True, True
                self.generations += 1
                self.made.append(0)
            case "pause":
                assert self.may_pause, "there is one Pause for each Generate"
                self.is_generating = self.may_pause = False
                self.events.append(Event(paused=Event.Paused(position=self.position)))
            case "snapshot":
                self.snapshots += 1
                token = f"{self.snapshots} at {self.position}".encode()
                self.events.append(Event(snapshot=Event.Snapshot(resume_token=token, position=self.position)))

    def make(self, count):
        """So many characters more."""
        if not self.is_generating:
            return
        count = min(count, self.left)
        self.left -= count
        message = Output(text=letter(self.generations - 1) * count, position=self.position)
        self.position += count
        self.made[-1] += count
        if not self.left:
            message.finish_reason, message.resume_token = LENGTH, f"end at {self.position}".encode()
            self.is_generating = False
        self.events.append(Event(output=message))


def letter(number):
    return chr(ord("a") + number % 26)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["feed", "generate"]), st.integers(1, 40)),
            st.tuples(st.sampled_from(["pause", "update", "snapshot", "act", "deliver", "take"]), st.just(0)),
            st.tuples(st.just("make"), st.integers(1, 10)),
        ),
        max_size=80,
    )
)
@settings(max_examples=200, deadline=None)
def test_every_answer_finds_its_action(steps):  # noqa: PLR0912  # a case for each thing that may happen
    server = MadeUpServer()
    dialogue = InteractProtocol(server.actions.append)
    opened = dialogue.open("", b"", pb.Sampling())
    feeds, snapshots, generations, texts = [], [dialogue.snapshot()], [], []

    def take():
        for generation, pieces in zip(generations, texts, strict=True):
            while generation.messages:
                pieces.append(generation.take().text)

    for step, number in steps:
        match step:
            case "feed" | "generate" if dialogue.generation:
                sent = len(server.actions)
                with pytest.raises(SessionStateError):
                    getattr(dialogue, step)("x" if step == "feed" else 1)
                assert len(server.actions) == sent
            case "feed":
                feeds.append((number, dialogue.feed("x" * number)))
            case "generate":
                generations.append(dialogue.generate(max_chars=number))
                texts.append([])
            case "pause":
                dialogue.pause()
            case "update":
                dialogue.update(pb.Sampling(temperature=0.5))
            case "snapshot":
                snapshots.append(dialogue.snapshot())
            case "act" if server.actions:
                server.act()
            case "make":
                server.make(number)
            case "deliver" if server.events:
                dialogue.received(server.events.popleft())
            case "take":
                take()
    while server.actions or server.events or server.is_generating:
        if server.actions:
            server.act()
        server.make(100)
        while server.events:
            dialogue.received(server.events.popleft())
    take()

    assert opened.take().seed == 7
    assert (dialogue.seed, dialogue.model_id, dialogue.position) == (7, "tiny", server.position)
    assert [answer.take().chars for _, answer in feeds] == [number for number, _ in feeds]
    serials = [int(answer.take().resume_token.split()[0]) for answer in snapshots]
    assert serials == list(range(1, len(snapshots) + 1))
    assert ["".join(pieces) for pieces in texts] == [letter(n) * count for n, count in enumerate(server.made)]
    assert all(generation.is_over and generation.take() is None for generation in generations)
    assert dialogue.resume_position == int(dialogue.resume_token.split()[-1])


@pytest.fixture
def sent():
    return []


@pytest.fixture
def dialogue(sent):
    dialogue = InteractProtocol(sent.append)
    dialogue.open("", b"", pb.Sampling())
    dialogue.snapshot()
    dialogue.received(Event(opened=Event.Opened(seed=1)))
    dialogue.received(Event(snapshot=Event.Snapshot(resume_token=b"new")))
    return dialogue


def test_a_refused_action_leaves_the_state_before_it(dialogue):
    fed, snapshot = dialogue.feed("x"), dialogue.update(pb.Sampling(temperature=-1))
    refused = ServerError(grpc.StatusCode.INVALID_ARGUMENT, "temperature")
    dialogue.received(Event(fed=Event.Fed(chars=1)))
    assert fed.take().chars == 1
    fed = dialogue.feed("y")
    dialogue.received(Event(snapshot=Event.Snapshot(resume_token=b"before", position=9)))
    assert not fed.is_ready
    assert snapshot is None
    dialogue.ended(refused)
    assert (dialogue.resume_token, dialogue.resume_position) == (b"before", 9)
    for act in (fed.take, lambda: dialogue.feed("z"), dialogue.snapshot, lambda: dialogue.update(pb.Sampling())):
        with pytest.raises(ServerError) as caught:
            act()
        assert caught.value is refused


def test_what_was_made_comes_before_the_error(dialogue):
    generation = dialogue.generate()
    dialogue.pause()
    dialogue.received(Event(output=Output(text="abc", position=5)))
    dialogue.received(Event(output=Output(position=8, finish_reason=DRAINING, resume_token=b"drained")))
    dialogue.ended(ServerError(grpc.StatusCode.UNAVAILABLE, "draining"))
    assert [generation.take().text, generation.take().finish_reason] == ["abc", DRAINING]
    with pytest.raises(ServerError, match="draining"):
        generation.take()
    assert (dialogue.resume_token, dialogue.resume_position, dialogue.position) == (b"drained", 8, 8)


def test_a_server_that_drains_an_idle_call(dialogue):
    dialogue.received(Event(output=Output(position=0, finish_reason=DRAINING, resume_token=b"drained")))
    dialogue.ended(ServerError(grpc.StatusCode.UNAVAILABLE, "draining"))
    assert dialogue.resume_token == b"drained"
    with pytest.raises(ServerError, match="draining"):
        dialogue.generate()


def test_a_call_that_ends_without_a_status_is_an_error_too(dialogue):
    generation = dialogue.generate()
    dialogue.ended(None)
    with pytest.raises(ServerError, match="without a last message"):
        generation.take()


def test_pause_is_sent_once_and_only_while_it_generates(dialogue, sent):
    def pauses():
        return sum(request.HasField("pause") for request in sent)

    dialogue.pause()
    assert pauses() == 0
    dialogue.generate(max_chars=2)
    dialogue.pause()
    dialogue.pause()
    dialogue.received(Event(output=Output(text="ab", finish_reason=LENGTH)))
    dialogue.pause()
    assert pauses() == 1
    with pytest.raises(SessionStateError, match="the model is generating"):  # its Paused is still to come
        dialogue.generate()
    dialogue.received(Event(paused=Event.Paused(position=2)))
    dialogue.pause()
    assert pauses() == 1
    dialogue.generate()
