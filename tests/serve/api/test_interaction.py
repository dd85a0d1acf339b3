"""Interact without a connection: actions at moments that a client over a connection rarely hits."""

import asyncio
from types import SimpleNamespace

import pytest
from calls import Request, generate

from rill.serve.api.call import Call
from rill.serve.api.interact import AHEAD, Inbox, Interaction
from rill.serve.api.requests import GenerateParameters, spec_of
from rill.serve.api.responses import ResponseBuilder
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.errors import EngineError
from rill.serve.models.model import Model
from rill.serve.observe.ledger import Ledger
from rill.v1 import rill_pb2 as pb

STOPPED = pb.FINISH_REASON_STOP


class Failing(Decoder):
    """A decoder that fails on request."""

    fail = False

    def run(self, *arguments):
        if self.fail:
            self.fail = False
            raise RuntimeError("out of memory")
        return super().run(*arguments)


async def no_constraint(spec, parameters):
    raise AssertionError("there is no constraint")


@pytest.fixture
async def conversation(tiny):
    """A call without a connection: `run` returns its events; the decoder of its model can fail."""
    model, tokens = Model(tiny, Failing(tiny, CPU), 4, 4, 0.010), ResumeTokens([bytes(32)], 0)

    async def run(*first, then=lambda event: ()):
        """The `first` actions are there from the beginning; `then` returns those that arrive with an event."""
        actions, events = asyncio.Queue(), []

        async def read():
            while (action := await actions.get()) is not None:
                yield action

        async def come(*more):
            for action in more:
                actions.put_nowait(action)
            while not actions.empty():
                await asyncio.sleep(0)
            await asyncio.sleep(0)

        async def write(event):
            events.append(event)
            await come(*then(event))

        context = SimpleNamespace(
            write=write, invocation_metadata=tuple, set_trailing_metadata=lambda _: None, time_remaining=lambda: None
        )
        inbox, call = Inbox(read()), Call("Interact", context, Ledger())
        call.on_model(model.metrics)
        spec = await spec_of(GenerateParameters(seed=5), None, model, ServerConfig())
        await come(*first)
        try:
            async with asyncio.timeout(20), model.slot() as slot:
                messages = ResponseBuilder(tokens)
                await Interaction(model, slot, spec, messages, ServerConfig(), inbox, call, no_constraint).run()
        except EngineError as error:
            events.append(error)
        finally:
            inbox.close()
        return events

    yield run, model, tokens
    model.engine.stop()
    assert model.slots.running == 0


def kinds(events):
    return [event.WhichOneof("event") for event in events]


def text_of(events):
    return "".join(event.output.text for event in events)


def at_its_end(*actions):
    """Let these actions arrive with the end of the first generation."""
    left = [actions]
    return lambda event: left.pop() if left and event.output.finish_reason else ()


PAUSE, SNAPSHOT, END = Request(pause=Request.Pause()), Request(snapshot=Request.Snapshot()), None


async def test_an_action_that_has_arrived_interrupts_a_generation(conversation):
    run, *_ = conversation
    assert kinds(await run(Request(generate=Request.Generate()), PAUSE, END))[-1] == "paused"


async def test_a_partial_stop_is_known_after_an_interruption(conversation):
    """The first generation ends inside the stop; the second is interrupted before its first character."""
    run, *_ = conversation
    whole = text_of(await run(Request(**generate(max_chars=300)), END))
    stop = whole[100:110]
    begun = whole.index(stop) + 4
    again = Request(**generate(max_chars=100, stop=[stop]))
    events = await run(Request(**generate(max_chars=begun, stop=[stop])), then=at_its_end(again, SNAPSHOT, END))
    assert kinds(events)[-2:] == ["snapshot", "output"]
    assert (text_of(events), events[-1].output.finish_reason) == (whole[:begun], STOPPED)


async def test_a_failing_round_leaves_the_state_before_it(conversation, tiny):
    run, model, tokens = conversation

    def fail(event):
        model.engine._decoder.fail = event.HasField("fed")
        return ()

    *events, error = await run(Request(feed="abc"), Request(**generate(max_chars=10)), END, then=fail)
    assert "out of memory" in str(error)
    assert kinds(events) == ["opened", "fed", "snapshot"]
    resumption = tokens.open(events[-1].snapshot.resume_token).resumption(tiny, model.numerics)
    assert resumption.snapshot.token == tiny.vocabulary.id_of("c")


async def test_the_state_is_sound_where_a_stop_had_begun_and_the_next_round_is_lost(conversation, tiny, monkeypatch):
    """The beginning of a stop that no longer applies is forgotten."""
    run, model, tokens = conversation
    whole = text_of(await run(Request(**generate(max_chars=300)), END))
    stop = whole[100:110]
    begun, lost = whole.index(stop) + 4, []
    next_generation = at_its_end(Request(**generate(max_chars=9, stop=["other"])), END)
    right = model.engine._output.collect

    def then(event):
        lost.extend([1] * bool(event.output.finish_reason))
        return next_generation(event)

    monkeypatch.setattr(model.engine._output, "collect", lambda *round_: 1 / 0 if lost else right(*round_))
    *events, error = await run(Request(**generate(max_chars=begun, stop=[stop])), then=then)
    assert "division by zero" in str(error)
    resumption = tokens.open(events[-1].snapshot.resume_token).resumption(tiny, model.numerics)
    assert (resumption.snapshot.position, resumption.snapshot.partial_stop) == (begun, "")


async def test_actions_are_read_a_few_ahead():
    """A client that sends endlessly has to wait, and fills no memory."""
    asked = 0

    async def actions():
        nonlocal asked
        while True:
            asked += 1
            yield Request()

    inbox = Inbox(actions())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (inbox.waiting, asked) == (AHEAD, AHEAD + 1)
    for _ in range(50):
        assert await inbox.take() == Request()
    inbox.close()
