"""rill.v1's own messages over a session: the events that one call of Interact would have."""

import asyncio
from contextlib import aclosing, suppress

import grpc.aio
import pytest
from servers import started

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError, SessionStateError
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

_Request = pb.InteractRequest
OPENING = _Request.Open(sampling=pb.Sampling(seed=7))
# Each action, and the event that has to arrive before the next one is sent.
SCRIPT = [
    (_Request(feed="the "), "fed"),
    (_Request(update=pb.Sampling(temperature=0.5)), None),
    (_Request(generate=_Request.Generate(max_chars=50, logprobs=1)), "output"),
    (_Request(snapshot=_Request.Snapshot()), "snapshot"),
    (_Request(pause=_Request.Pause()), "paused"),
    (_Request(generate=_Request.Generate(max_chars=20, stop=["e"], include_stop=True)), "output"),
    (_Request(feed="and "), "fed"),
    (_Request(feed="so "), "fed"),
    (_Request(snapshot=_Request.Snapshot()), "snapshot"),
]


def told(events):
    """What events say, whatever messages a text is cut into and whenever a token was made."""
    found = []
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "output" and found and found[-1][0] == "output" and not found[-1][3]:
            _, start, text, _ = found[-1]
            found[-1] = (kind, start, text + event.output.text, event.output.finish_reason)
        elif kind == "output":
            found.append((kind, event.output.position, event.output.text, event.output.finish_reason))
        elif kind == "fed":
            found.append((kind, event.fed.chars, event.fed.logprob))
        else:
            found.append((kind, getattr(event, kind).position))
    return found


async def followed(events, act):
    """Do what SCRIPT says; the events."""
    seen = []
    for action, awaited in SCRIPT:
        act(action)
        while awaited:
            seen.append(await anext(events))
            if seen[-1].WhichOneof("event") == awaited and (awaited != "output" or seen[-1].output.finish_reason):
                break
    return seen


async def test_the_events_are_those_of_one_call(server):
    actions = asyncio.Queue()

    async def sent():
        yield _Request(open=OPENING)
        while (action := await actions.get()) is not None:
            yield action

    async with grpc.aio.insecure_channel(server.target) as channel:
        call = TextGenerationStub(channel).Interact(sent())
        events = aiter(call)
        assert (await anext(events)).WhichOneof("event") == "opened"
        expected = await followed(events, actions.put_nowait)
        actions.put_nowait(None)
    async with (
        AsyncClient(server.target) as client,
        client.session(OPENING) as session,
        aclosing(session.events()) as events,
    ):
        assert told(await followed(events, session.act)) == told(expected)


async def test_actions_out_of_order_change_nothing(server):
    async with AsyncClient(server.target) as client, client.session(OPENING) as session:
        for action in (_Request(), _Request(open=OPENING), _Request(pause=_Request.Pause())):
            with pytest.raises(SessionStateError):
                session.act(action)
        session.act(_Request(generate=_Request.Generate(chars_per_second=50)))
        with pytest.raises(SessionStateError, match="feed: the model is generating"):
            session.act(_Request(feed="a"))
        async with aclosing(session.events()) as events:
            await anext(events)
            # Behind a pause, an action waits; whether it is in order is known then.
            for action in (_Request(pause=_Request.Pause()), _Request(feed="a"), _Request(pause=_Request.Pause())):
                session.act(action)
            kinds = []
            with suppress(SessionStateError):
                while True:
                    kinds.append((await anext(events)).WhichOneof("event"))
        assert [kind for kind in kinds if kind != "output"] == ["paused"]
        assert session.waiting == (1, 1)
        async with aclosing(session.events()) as events:
            assert (await anext(events)).fed.chars == 1


async def test_a_session_that_ends_raises_its_error(server):
    async with AsyncClient(server.target) as client, client.session(OPENING) as session:
        session.act(_Request(feed="\u2603"))
        with pytest.raises(ServerError, match="not in the model's vocabulary"):
            await anext(session.events())


@pytest.mark.long
async def test_the_events_survive_the_server(tiny_folder, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    with started(tiny_folder, key) as first, started(tiny_folder, key) as second:
        async with AsyncClient(f"{first.target},{second.target}") as client, client.session(OPENING) as session:
            session.act(_Request(generate=_Request.Generate(max_chars=3000, chars_per_second=2000)))
            session.act(_Request(snapshot=_Request.Snapshot()))
            text, kinds = "", []
            async with aclosing(session.events()) as events:
                async for event in events:
                    kinds.append(event.WhichOneof("event"))
                    text += event.output.text
                    if len(text) > 1500:
                        first.process.kill()
                    if event.output.finish_reason:
                        break
        async with AsyncClient(second.target) as client:
            expected = "".join([piece async for piece in client.generate(seed=7, max_chars=3000)])
        assert text == expected
        assert kinds.count("snapshot") == 1
        assert {*kinds} == {"output", "snapshot"}
