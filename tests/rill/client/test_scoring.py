"""A score or a question whose server goes away is repeated elsewhere; the application sees everything once."""

import asyncio
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import MappingProxyType

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import run_server

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.scoring import Scoring
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server

Code = grpc.StatusCode
TEXT = "To be, or not to be, that is the question. " * 1200


class Gone(grpc.RpcError):
    """A server that went away, as gRPC raises it."""

    def __init__(self, code=Code.UNAVAILABLE, details="gone"):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return ()


def logprob(index):
    return -(index * index % 7) / 4


def answers(count, sizes, shift=0.0, as_prompt=False, top=False):
    """Yield the messages of a server that scores `count` characters, in messages of these sizes."""
    position = 0
    values = [math.nan if as_prompt and not index else logprob(index) + shift for index in range(count)]
    for size in [*sizes, count]:
        end = min(position + size, count)
        if end > position:
            entries = [pb.CharLogprob(character=str(at), logprob=values[at]) for at in range(position, end)]
            logprobs = values[position:end]
            yield pb.ScoreResponse(position=position, logprobs=logprobs, top=entries if top else ())
        position = end
    scored = values[as_prompt:]
    yield pb.ScoreResponse(position=count, total=pb.ScoreResponse.Total(chars=len(scored), logprob=sum(scored)))


@given(
    count=st.integers(0, 60),
    calls=st.lists(
        st.tuples(st.lists(st.integers(0, 20), max_size=6), st.integers(0, 8), st.sampled_from(["broken", "ended"])),
        max_size=10,
    ),
    addresses=st.integers(1, 3),
    as_prompt=st.booleans(),
    top=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_character_once(count, calls, addresses, as_prompt, top):
    """However calls break, the application sees what one whole call would have shown it."""
    now = [0.0]
    asked = pb.ScoreRequest(text="x" * count, as_prompt=as_prompt, top_logprobs=3 if top else None)
    scoring = Scoring(asked, addresses, 1e6, clock=lambda: now[0])
    shown, plan = [], iter(calls)
    while (request := scoring.request()) is not None:
        assert len(request.text) == count
        sizes, whole, ending = next(plan, ([7] * 9, 99, "ended"))
        messages = list(answers(count, sizes, as_prompt=as_prompt, top=top))
        if not shown:
            whole = max(whole, 1)  # before the first message each address is tried once
        shown += [message for message in map(scoring.received, messages[:whole]) if message is not None]
        now[0] += scoring.ended(Gone() if ending == "broken" else None)
        assert 0 <= scoring.address < addresses
    position = 0
    for message in shown:
        assert message.position == position
        position += len(message.logprobs)
    whole = list(answers(count, [], as_prompt=as_prompt, top=top))
    for name in ("logprobs", "top"):
        found, expected = ([str(each) for m in messages for each in getattr(m, name)] for messages in (shown, whole))
        assert found == expected  # as texts, in which a NaN equals another
    assert [message.HasField("total") for message in shown] == [False] * (len(shown) - 1) + [True]


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        (list(answers(30, [10], shift=-1.0)), "different models"),
        (list(answers(5, [])), "one ends after 5 characters, after 10"),
        ([pb.ScoreResponse(position=3)], "begins at character 3 instead of 0"),
    ],
)
def test_other_scores_are_data_loss(messages, match):
    scoring = Scoring(pb.ScoreRequest(text="x" * 30), addresses=2)
    scoring.request()
    assert scoring.received(next(answers(30, [10]))).position == 0
    scoring.ended(Gone())
    scoring.request()
    with pytest.raises(ServerError, match=match) as caught:
        list(map(scoring.received, messages))
    assert caught.value.code is Code.DATA_LOSS


def test_other_scores_as_a_prompt_are_data_loss():
    """The first character, which has none, does not hide that others differ."""
    scoring = Scoring(pb.ScoreRequest(text="x" * 30, as_prompt=True), addresses=2)
    scoring.request()
    scoring.received(next(answers(30, [10], as_prompt=True)))
    scoring.ended(Gone())
    scoring.request()
    with pytest.raises(ServerError, match="different models"):
        scoring.received(next(answers(30, [10], shift=-1.0, as_prompt=True)))


def test_a_first_character_may_have_a_log_probability_as_a_prompt():
    """It has one behind a start symbol."""
    scoring = Scoring(pb.ScoreRequest(text="x" * 30, as_prompt=True), addresses=2)
    scoring.request()
    messages = list(answers(30, [10, 10]))
    assert len(scoring.received(messages[0]).logprobs) == 10
    scoring.ended(Gone())
    scoring.request()
    shown = list(filter(None, map(scoring.received, messages)))
    assert [(one.position, len(one.logprobs)) for one in shown] == [(10, 10), (20, 10), (30, 0)]


def test_a_server_that_is_too_old_is_named():
    """It ignores fields that it does not know, and answers another question."""
    scoring = Scoring(pb.ScoreRequest(text="x" * 30, top_logprobs=0), retry_seconds=60)
    scoring.request()
    with pytest.raises(ServerError, match="does not know top_logprobs of a score") as caught:
        scoring.received(next(answers(30, [10])))
    assert caught.value.code is Code.UNIMPLEMENTED


def test_other_numerics_are_not_data_loss():
    scoring = Scoring(pb.ScoreRequest(text="x" * 30), addresses=2)
    scoring.request()
    scoring.received(next(answers(30, [10])))
    scoring.ended(Gone())
    scoring.request()
    shown = [scoring.received(message) for message in answers(30, [15], shift=1e-5)]
    assert [len(message.logprobs) for message in shown] == [5, 15, 0]


# Real servers, which drain at that moment.


@pytest.fixture(params=["Client", "AsyncClient"])
def calls(request):
    """Both clients, with the same methods for tests: all messages of a score, and what is served."""

    class Sync:
        def score(self, target, text, each=lambda message: None, asked=MappingProxyType({}), **options):
            with Client(target, **options) as client:
                return [(message, each(message))[0] for message in client.score(text, **asked)]

        def models(self, target, **options):
            with Client(target, **options) as client:
                return client.models()

    class Async:
        def score(self, target, text, each=lambda message: None, asked=MappingProxyType({}), **options):
            async def run():
                async with AsyncClient(target, **options) as client:
                    return [(message, each(message))[0] async for message in client.score(text, **asked)]

            return asyncio.run(run())

        def models(self, target, **options):
            async def run():
                async with AsyncClient(target, **options) as client:
                    return await client.models()

            return asyncio.run(run())

    return Sync() if request.param == "Client" else Async()


def joined(messages):
    assert [message.position for message in messages][:1] == [0]
    assert messages[-1].total.chars == sum(len(message.logprobs) for message in messages)
    return [value for message in messages for value in message.logprobs]


@pytest.fixture(scope="module")
def whole_score(server):
    """The log-probabilities of TEXT from a server that stays."""
    with Client(server.target) as client:
        return joined(list(client.score(TEXT)))


@pytest.mark.parametrize(
    "end", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL], ids=["drained", "killed"]
)
def test_a_score_continues_at_the_next_address(tiny_folder, server, calls, whole_score, end):
    with run_server(tiny_folder, "--drain-seconds", 0) as first:
        seen = []

        def after_the_first(message):
            if not seen:
                first.process.send_signal(end)
                first.process.wait(20)
            seen.append(message)

        messages = calls.score(f"{first.target},{server.target}", TEXT, after_the_first)
        assert len(seen) > 1
    assert joined(messages) == whole_score


def test_a_score_with_alternatives_continues_at_the_next_address(tiny_folder, server, calls):
    """What was delivered is skipped in `top` too, and the first character, which has no log-probability, is known."""
    text, asked = TEXT[:4000], {"as_prompt": True, "top_logprobs": 2}
    whole = calls.score(server.target, text, asked=asked)
    with run_server(tiny_folder, "--drain-seconds", 0) as first:
        seen = []

        def after_the_third(message):
            seen.append(message)
            if len(seen) == 3:
                first.process.send_signal(signal.SIGKILL)
                first.process.wait(20)

        messages = calls.score(f"{first.target},{server.target}", text, after_the_third, asked)
    assert [entry.character for message in messages for entry in message.top] == list(text)
    for name in ("logprobs", "top"):
        found, expected = ([str(each) for m in all_ for each in getattr(m, name)] for all_ in (messages, whole))
        assert found == expected
    assert messages[-1].total.chars == whole[-1].total.chars == len(text) - 1


def test_a_score_without_retries_breaks(tiny_folder, server, calls):
    with run_server(tiny_folder, "--drain-seconds", 0) as first, pytest.raises(ServerError) as caught:
        calls.score(f"{first.target},{server.target}", TEXT, lambda _: first.process.kill(), retry_seconds=0)
    assert caught.value.code is Code.UNAVAILABLE


@contextmanager
def draining(folder):
    """A server that is draining, because a stream still has time."""
    with ExitStack() as stack:
        running = stack.enter_context(run_server(folder, "--drain-seconds", 20))
        client = stack.enter_context(running.client())
        pieces = client.generate(max_chars=0, chars_per_second=20)
        stack.callback(pieces.close)
        next(pieces)
        running.process.send_signal(signal.SIGTERM)
        yield running


def test_calls_to_a_draining_server_are_made_at_the_next_address(tiny_folder, server, calls):
    with draining(tiny_folder) as first:
        for target in (f"{first.target},{server.target}", f"127.0.0.1:1,{first.target},{server.target}"):
            assert joined(calls.score(target, "To be"))
            assert calls.models(target).models  # which a draining server answers too
            with Client(target) as client, client.interact() as session:
                assert session.feed("To be").chars == 5


class Unready(TextGenerationServicer):
    """Refuses every call as gRPC does where a server is going away."""

    def refuse(self, _, context):
        context.abort(Code.CANCELLED, "CANCELLED")

    Generate = Score = Interact = ListModels = refuse


def test_calls_that_a_server_did_not_accept_are_made_at_the_next_address(server, calls):
    unready = grpc.server(ThreadPoolExecutor(2))
    add_TextGenerationServicer_to_server(Unready(), unready)
    port = unready.add_insecure_port("127.0.0.1:0")
    unready.start()
    try:
        target = f"127.0.0.1:{port},{server.target}"
        assert joined(calls.score(target, "To be"))
        assert calls.models(target).models
        with Client(target) as client, client.interact() as session:
            assert session.feed("To be").chars == 5
        with pytest.raises(ServerError, match="did not accept the call") as caught:
            calls.models(f"127.0.0.1:{port}", retry_seconds=0)
        assert caught.value.code is Code.UNAVAILABLE
    finally:
        unready.stop(None).wait()
