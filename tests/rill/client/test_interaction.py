"""Sessions over calls that break: which event answers which action, and that every character is seen once."""

import json
from collections import deque

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.client.errors import ServerError, SessionStateError
from rill.client.interaction import NO_STOP, InteractProtocol
from rill.client.symbols import symbols_of
from rill.v1 import rill_pb2 as pb

Event, Output = pb.InteractResponse, pb.GenerateResponse
Open, Generate = pb.InteractRequest.Open, pb.InteractRequest.Generate
LENGTH, STOP, DRAINING = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP, pb.FINISH_REASON_DRAINING
Code = grpc.StatusCode
GONE = ServerError(Code.UNAVAILABLE, "gone")


def char(position, read, version, rule, since):
    """The character that a made-up model generates: it shows which version of the parameters chose it, which version
    began a constraint, and how many characters ago.
    """
    shown = version % 10 if position % 2 else 10 + (position * position % 7 + read % 3)
    return chr(0x10000 + (rule % 128 * 256 + since % 256) * 20 + shown)


def tail(position):
    """What makes the symbol at that position longer than its first character, where symbols may be."""
    return "lx" * (position % 5 // 2)


class MadeUpServer:
    """One call of Interact, one step at a time, as in rill.proto. `temperature` is the version of the parameters."""

    def __init__(self, has_long_symbols):
        self.has_long_symbols = has_long_symbols
        self.actions, self.events = deque(), deque()
        self.position = self.read = self.version = self.left = self.rule = self.since = 0
        self.is_generating = self.may_pause = self.is_drained = False

    @property
    def is_over(self):
        return self.is_drained or (self.actions and self.actions[0] is None and not self.is_generating)

    def token(self):
        return json.dumps([self.position, self.read, self.version, self.rule, self.since]).encode()

    def act(self):
        """Do the next action, if it is its turn."""
        if self.is_drained or not self.actions or self.actions[0] is None:
            return
        action = self.actions.popleft()
        match action.WhichOneof("action"):
            case "open":
                if action.open.resume_token:
                    (self.position, self.read, self.version, self.rule, self.since) = json.loads(
                        action.open.resume_token
                    )
                self.update(action.open.sampling)
                self.events.append(Event(opened=Event.Opened(seed=7, model_id="tiny")))
            case "feed":
                assert not self.is_generating
                self.read += len(action.feed)
                self.events.append(Event(fed=Event.Fed(chars=len(action.feed))))
            case "generate":
                assert not self.is_generating
                assert action.generate.max_chars
                self.left, self.is_generating, self.may_pause = action.generate.max_chars, True, True
            case "pause":
                assert self.may_pause, "there is one Pause for each Generate"
                self.is_generating = self.may_pause = False
                self.events.append(Event(paused=Event.Paused(position=self.position)))
            case "update":
                self.update(action.update)
            case "snapshot":
                snapshot = Event.Snapshot(resume_token=self.token(), position=self.position)
                self.events.append(Event(snapshot=snapshot))

    def update(self, sampling):
        if sampling.HasField("temperature"):
            self.version = int(sampling.temperature)
        if sampling.HasField("constraint"):
            self.rule, self.since = int(sampling.constraint.regex or sampling.constraint.terminator), 0

    def make(self, count):
        """Generate so many characters."""
        if not self.is_generating or self.is_drained:
            return
        count = min(count, self.left)
        self.left -= count
        tails = [tail(at) if self.has_long_symbols else "" for at in range(self.position + count)]
        tails, before = tails[self.position :], "".join(tails[: self.position])
        since = self.since - self.position
        symbols = [
            char(at, self.read, self.version, self.rule, since + at) + tail
            for at, tail in enumerate(tails, self.position)
        ]
        text, lengths = "".join(symbols), map(len, symbols) if self.has_long_symbols else ()
        message = Output(text=text, position=self.position, symbol_lengths=lengths)
        message.text_position = (self.position + len(before)) * self.has_long_symbols
        self.position, self.since = self.position + count, self.since + count
        if not self.left:
            message.finish_reason, message.resume_token = LENGTH, self.token()
            if self.rule > 0:
                message.usage.matches = self.since % 2 == 0
            self.is_generating = False
        if text or message.finish_reason:
            self.events.append(Event(output=message))

    def drain(self):
        if self.events or self.position or self.read:  # it was opened
            output = Output(position=self.position, finish_reason=DRAINING, resume_token=self.token())
            self.events.append(Event(output=output))
        self.is_drained = True


class World:
    """A session, its calls, and what the application has seen of it."""

    def __init__(self, addresses, has_long_symbols):
        self.now, self.has_long_symbols = 0.0, has_long_symbols
        self.protocol = InteractProtocol(Open(model="tiny"), addresses, 1e9, clock=lambda: self.now)
        self.version = self.read = 0
        self.rules = {}  # by the version of the update that begins or removes one
        self.answered_version = 0
        self.feeds, self.snapshots, self.texts = [], [self.protocol.open()], []
        self.connect()
        while not self.snapshots[0].is_ready:
            self.step("act", 0)
            self.step("deliver", 0)

    def connect(self):
        self.server = MadeUpServer(self.has_long_symbols)
        self.protocol.connected(self.server.actions.append)

    def end(self, error):
        delay = self.protocol.ended(error)
        assert delay is not None, self.protocol.error
        self.now += delay
        self.connect()

    def step(self, kind, number):  # noqa: PLR0912  # a case for each thing that may happen
        protocol, server = self.protocol, self.server
        match kind:
            case "feed" | "generate" if protocol.generation:
                with pytest.raises(SessionStateError):
                    getattr(protocol, kind)("x" if kind == "feed" else 1)
            case "feed":
                self.read += number
                self.feeds.append((number, protocol.feed("x" * number)))
            case "generate":
                self.texts.append((protocol.generate(Generate(max_chars=number)), [], number, self.read, self.version))
            case "pause":
                protocol.pause()
            case "update":
                self.version += 1
                protocol.update(pb.Sampling(temperature=self.version))
            case "constrain":
                self.version += 1
                self.rules[self.version] = self.version if number else -self.version
                rule = str(self.rules[self.version])
                constraint = pb.Constraint(regex=rule) if number else pb.Constraint(terminator=rule)
                protocol.update(pb.Sampling(temperature=self.version, constraint=constraint))
            case "snapshot":
                self.snapshots.append(protocol.snapshot())
            case "act":
                server.act()
            case "make":
                server.make(number)
            case "deliver" if server.events:
                protocol.received(server.events.popleft())
            case "deliver" if server.is_over:
                self.end(GONE if server.is_drained else None)
            case "run":
                for _ in range(number):
                    for each in ("act", "make", "deliver"):
                        self.step(each, 2)
            case "crash":
                self.end(GONE)
            case "drain" if not server.is_drained:
                server.drain()
            case "take":
                for generation, pieces, *_ in self.texts:
                    while generation.messages:
                        pieces.append(generation.take())

    def settle(self):
        """Let everything come to its end."""
        for _ in range(10_000):
            self.step("act", 0)
            self.step("make", 5)
            self.step("deliver", 0)
            if not (self.server.actions or self.server.events or self.server.is_generating or self.server.is_drained):
                break
        else:
            raise AssertionError("it does not come to an end")
        self.step("take", 0)


APPLICATION = [("feed", 2), ("generate", 30), ("pause", 0), ("update", 0), ("snapshot", 0), ("take", 0)]
APPLICATION += [("constrain", 1), ("constrain", 0)]
NETWORK = [("act", 0), ("make", 3), ("deliver", 0), ("run", 2), ("run", 8), ("crash", 0), ("drain", 0)]
STEPS = st.lists(st.one_of(st.sampled_from(APPLICATION), st.sampled_from(NETWORK)), min_size=10, max_size=60)


@given(STEPS, st.integers(1, 3), st.sampled_from([4, 1024]), st.booleans())
@settings(max_examples=500, deadline=None)
def test_every_character_once(steps, addresses, every, has_long_symbols):
    """However calls break: the application sees one text, chosen by parameters that only ever move forward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rill.client.interaction.SNAPSHOT_EVERY", every)
        world = World(addresses, has_long_symbols)
        for kind, number in steps:
            world.step(kind, number)
        world.settle()
    protocol, server = world.protocol, world.server
    assert (protocol.seed, protocol.model_id) == (7, "tiny")
    assert [reply.take().chars for _, reply in world.feeds] == [number for number, _ in world.feeds]
    positions = [reply.take().position for reply in world.snapshots]
    assert positions == sorted(positions)
    position = text_position = version = rule = since = 0

    def advance(to):
        nonlocal version, rule, since
        for version in range(version + 1, to + 1):  # noqa: B020
            if version in world.rules:
                rule, since = world.rules[version], 0

    for generation, messages, count, read, least in world.texts:
        assert generation.is_over
        assert generation.take() is None
        text = [symbol for message in messages for symbol in symbols_of(message.text, message.symbol_lengths)]
        assert [message.finish_reason for message in messages[:-1]] == [0] * len(messages[:-1])
        if not generation.is_pausing:
            assert len(text) == count
            assert messages[-1].finish_reason == LENGTH
        advance(least)
        for message in messages:
            assert (message.position, message.text_position) == (position, text_position)
            text_position += len(message.text)
            for symbol in symbols_of(message.text, message.symbol_lengths):
                assert symbol[1:] == (tail(position) if has_long_symbols else "")
                while char(position, read, version, rule, since) != symbol[0]:
                    advance(version + 1)
                    assert version <= world.version
                position, since = position + 1, since + 1
    assert protocol.position == position == server.position
    assert (server.read, server.version) == (world.read, world.version)
    advance(world.version)
    assert (server.rule, server.since) == (rule, since)
    assert json.loads(protocol.resume_token)[0] == protocol.resume_position <= position


@pytest.fixture
def sent():
    return []


@pytest.fixture
def protocol(sent):
    return opened(sent)


def opened(sent, **options):
    protocol = InteractProtocol(Open(), **options)
    protocol.open()
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened(seed=1, model_id="tiny")))
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"new")))
    return protocol


def test_a_refused_action_leaves_the_state_before_it(protocol):
    fed = protocol.feed("x")
    protocol.received(Event(fed=Event.Fed(chars=1)))
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"after x")))
    assert fed.take().chars == 1
    protocol.update(pb.Sampling(temperature=-1))
    fed = protocol.feed("y")
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"before", position=9)))
    assert not fed.is_ready
    refused = ServerError(Code.INVALID_ARGUMENT, "temperature")
    assert protocol.ended(refused) is None
    assert (protocol.resume_token, protocol.resume_position, refused.resume_token) == (b"before", 9, b"before")
    for act in (fed.take, lambda: protocol.feed("z"), protocol.snapshot, lambda: protocol.update(pb.Sampling())):
        with pytest.raises(ServerError) as caught:
            act()
        assert caught.value is refused


def test_a_refused_update_whose_status_was_lost_is_refused_again(protocol, sent):
    """A snapshot behind it is answered with the state before; the next call begins with the update once more."""
    protocol.update(pb.Sampling(temperature=-1, logit_bias={"a": 1}))
    protocol.update(pb.Sampling(logit_bias={"b": 1}))
    protocol.snapshot()
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"before")))
    assert protocol.ended(GONE) is not None
    protocol.connected(sent.append)
    assert sent[-1].open.resume_token == b"before"
    assert sent[-1].open.sampling == pb.Sampling(temperature=-1, logit_bias={"b": 1})


def test_received_text_comes_before_the_error(sent):
    protocol = opened(sent, retry_seconds=0)
    generation = protocol.generate(Generate())
    protocol.pause()
    protocol.received(Event(output=Output(text="abc", position=0)))
    protocol.received(Event(output=Output(position=3, finish_reason=DRAINING, resume_token=b"drained")))
    assert protocol.ended(ServerError(Code.UNAVAILABLE, "draining")) is None
    assert [generation.take().text, generation.take().finish_reason] == ["abc", DRAINING]
    with pytest.raises(ServerError, match="draining") as caught:
        generation.take()
    assert caught.value.resume_token == protocol.resume_token == b"drained"
    assert (protocol.resume_position, protocol.position) == (3, 3)


def test_text_behind_an_update_is_held_until_a_token_includes_it(protocol):
    generation = protocol.generate(Generate())
    protocol.received(Event(output=Output(text="abc")))
    protocol.update(pb.Sampling(temperature=0.5))
    protocol.received(Event(output=Output(text="de", position=3)))
    assert generation.take().text == "abc"
    assert not generation.is_ready
    assert protocol.position == 3
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"updated", position=5)))
    assert generation.take().text == "de"
    assert protocol.position == 5


def test_what_was_not_sent_before_a_drain_is_sent_after_it(protocol, sent):
    """While delivered text is generated again, nothing else is sent: a token from then does not include it."""
    generation = protocol.generate(Generate())
    protocol.received(Event(output=Output(text="abc")))
    protocol.ended(GONE)
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert sent[-1].generate.max_chars == 3
    protocol.update(pb.Sampling(temperature=0.5))
    snapshot = protocol.snapshot()
    assert sent[-1].HasField("generate")
    protocol.received(Event(output=Output(text="ab", finish_reason=DRAINING, resume_token=b"ab")))
    protocol.ended(GONE)
    protocol.connected(sent.append)
    assert sent[-1].open == Open(resume_token=b"ab")  # the update would change what was delivered
    protocol.received(Event(opened=Event.Opened()))
    assert sent[-1].generate.max_chars == 1
    protocol.received(Event(output=Output(text="c", position=2, finish_reason=LENGTH, resume_token=b"abc")))
    assert protocol.ended(None) == 0
    protocol.connected(sent.append)
    assert sent[-1].open == Open(resume_token=b"abc")
    before = len(sent)
    protocol.received(Event(opened=Event.Opened()))
    assert [request.WhichOneof("action") for request in sent[before:]] == ["generate", "update", "snapshot", "snapshot"]
    assert sent[before + 1].update.temperature == 0.5
    assert not snapshot.is_ready
    assert [generation.take().text, generation.is_ready] == ["abc", False]


@pytest.mark.parametrize("output", [Output(text="x", position=2), Output(text="x", position=4), Output(text="abd")])
def test_another_text_is_data_loss(protocol, sent, output):
    generation = protocol.generate(Generate())
    protocol.received(Event(output=Output(text="abc")))
    assert protocol.ended(GONE) is not None
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert sent[-1].generate.max_chars == 3
    protocol.received(Event(output=output))
    assert generation.take().text == "abc"
    with pytest.raises(ServerError, match="do not produce the same text") as caught:
        generation.take()
    assert (caught.value.code, caught.value.resume_token) == (Code.DATA_LOSS, b"new")
    assert protocol.ended(GONE) is None


def test_a_stop_whose_message_was_lost(protocol, sent):
    generation = protocol.generate(Generate(stop=["c"], include_stop=True))
    protocol.received(Event(output=Output(text="abc")))
    protocol.ended(GONE)
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    protocol.received(Event(output=Output(text="abc", finish_reason=STOP, resume_token=b"end")))
    assert sent[-1] is None
    assert protocol.ended(None) == 0
    assert [generation.take().text, generation.take().finish_reason, generation.take()] == ["abc", STOP, None]
    assert protocol.resume_token == b"end"


def test_stops_of_a_generation_that_ended_do_not_come_back(protocol, sent):
    """A token has them; the state of the call that is lost had not."""
    protocol.generate(Generate(stop=["x"]))
    protocol.received(Event(output=Output(text="abc", finish_reason=STOP, resume_token=b"end")))
    protocol.generate(Generate(max_chars=9))
    assert list(sent[-1].generate.stop) == []
    protocol.received(Event(output=Output(text="d", position=3)))
    for _ in range(2):
        protocol.ended(GONE)
        protocol.connected(sent.append)
        protocol.received(Event(opened=Event.Opened()))
        assert list(sent[-1].generate.stop) == [NO_STOP]
    protocol.received(Event(output=Output(text="d", position=3, finish_reason=LENGTH, resume_token=b"here")))
    protocol.ended(None)
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert (sent[-1].generate.max_chars, list(sent[-1].generate.stop)) == (8, [NO_STOP])


def test_a_pause_during_an_outage_ends_the_text_at_once(protocol, sent):
    generation = protocol.generate(Generate())
    protocol.received(Event(output=Output(text="abc")))
    protocol.ended(GONE)
    protocol.pause()
    assert generation.is_over
    fed = protocol.feed("x")
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert sent[-1].generate.max_chars == 3
    protocol.received(Event(output=Output(text="abc", finish_reason=LENGTH, resume_token=b"here")))
    assert protocol.ended(None) == 0
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert [request.WhichOneof("action") for request in sent[-2:]] == ["open", "feed"]
    protocol.received(Event(fed=Event.Fed(chars=1)))
    assert sent[-1].WhichOneof("action") == "snapshot"  # not before: a feed that is refused keeps its reason
    assert fed.take().chars == 1


def test_outages_are_reported_once():
    reported, sent, now = [], [], [0.0]
    protocol = opened(sent, on_interrupted=reported.append, clock=lambda: now[0])
    protocol.feed("x")
    while (delay := protocol.ended(GONE)) is not None:
        now[0] += max(delay, 0.001)
        protocol.connected(sent.append)
    assert reported == [GONE]
    assert now[0] == pytest.approx(30)
    assert "the session broke after 0 characters and could not be continued within 30 s" in str(protocol.error)
    assert protocol.error.resume_token == b"new"


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.NOT_FOUND, Code.UNAUTHENTICATED])
def test_errors_that_no_other_call_can_mend(protocol, code):
    fed, error = protocol.feed("x"), ServerError(code, "no")
    assert protocol.ended(error) is None
    with pytest.raises(ServerError, match="no"):
        fed.take()


def test_before_the_first_state_every_address_is_tried_at_least_once():
    protocol = InteractProtocol(Open(), addresses=2, retry_seconds=0)
    first = protocol.open()
    for delay in (0, None):
        protocol.connected([].append)
        assert protocol.ended(GONE) == delay
    with pytest.raises(ServerError, match="gone"):
        first.take()


def test_an_outage_is_reported_once():
    """At the beginning only if there is nothing else to be done than to wait."""
    interrupted = []
    protocol = InteractProtocol(Open(), addresses=2, on_interrupted=interrupted.append)
    protocol.open()
    for reports in (0, 1, 1, 1):
        assert protocol.ended(GONE) is not None
        assert len(interrupted) == reports
    protocol.progressed()
    for _ in range(3):
        protocol.ended(GONE)
        assert len(interrupted) == 2


def test_pause_is_sent_once_and_only_while_it_generates(protocol, sent):
    def pauses():
        return sum(request.HasField("pause") for request in sent)

    protocol.pause()
    assert pauses() == 0
    protocol.generate(Generate(max_chars=2))
    protocol.pause()
    protocol.pause()
    protocol.received(Event(output=Output(text="ab", finish_reason=LENGTH)))
    protocol.pause()
    assert pauses() == 1
    with pytest.raises(SessionStateError, match="the model is generating"):  # its Paused is still to come
        protocol.generate(Generate())
    protocol.received(Event(paused=Event.Paused(position=2)))
    protocol.pause()
    assert pauses() == 1
    protocol.generate(Generate())


def rule(regex=None):
    return pb.Sampling(constraint=pb.Constraint(regex=regex))


def test_a_constraint_begins_anew_where_it_was_set_and_nowhere_else(protocol, sent):
    """A token of the text that it has begun knows it. Until then, nothing changes where it is sent again."""

    def reopened():
        protocol.ended(GONE)
        protocol.connected(sent.append)
        opening = sent[-1].open
        protocol.received(Event(opened=Event.Opened()))
        return opening

    protocol.update(rule("a*"))
    protocol.snapshot()
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"updated")))
    assert reopened() == Open(resume_token=b"updated", sampling=rule("a*"))
    protocol.generate(Generate(max_chars=2))
    assert reopened() == Open(resume_token=b"updated", sampling=rule("a*"))
    done = Output(text="aa", finish_reason=LENGTH, resume_token=b"aa", usage=pb.Usage(matches=True))
    protocol.received(Event(output=done))
    assert reopened() == Open(resume_token=b"aa")
    protocol.update(rule("b*"))
    protocol.update(rule())
    assert reopened() == Open(resume_token=b"aa", sampling=rule())
    protocol.update(rule("c*"))
    protocol.generate(Generate(max_chars=2))
    protocol.snapshot()
    protocol.received(Event(output=Output(text="c", position=2)))
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"aac", position=3)))
    assert reopened() == Open(resume_token=b"aac", sampling=pb.Sampling())


def test_a_last_message_that_was_lost_says_whether_the_text_matches(protocol, sent):
    protocol.update(rule("a*b"))
    generation = protocol.generate(Generate(max_chars=3))
    protocol.received(Event(output=Output(text="aaa")))
    protocol.ended(GONE)
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    usage = pb.Usage(matches=False)
    protocol.received(Event(output=Output(text="aaa", finish_reason=LENGTH, resume_token=b"aaa", usage=usage)))
    protocol.ended(None)
    protocol.connected(sent.append)
    protocol.received(Event(opened=Event.Opened()))
    assert generation.take().text == "aaa"
    last = generation.take()
    assert (last.finish_reason, last.usage.HasField("matches"), last.usage.matches) == (LENGTH, True, False)


def test_a_server_that_does_not_know_constraints_is_an_error(sent):
    """It would ignore the field; a generation that ran when the constraint was set may have none."""
    protocol = opened(sent)
    first = protocol.generate(Generate(max_chars=1))
    protocol.update(rule("a"))
    protocol.received(Event(output=Output(text="x", finish_reason=LENGTH, resume_token=b"x")))
    protocol.received(Event(snapshot=Event.Snapshot(resume_token=b"x", position=1)))
    assert first.take().text == "x"
    second = protocol.generate(Generate(max_chars=1))
    protocol.received(Event(output=Output(text="y", position=1, finish_reason=LENGTH, resume_token=b"xy")))
    with pytest.raises(ServerError, match="does not know constraints") as caught:
        second.take()
    assert caught.value.code is Code.UNIMPLEMENTED
