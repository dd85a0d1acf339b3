"""What a text must match: how it is asked for, and that a text which is continued elsewhere never begins it anew."""

import enum
import json
import math
from types import MappingProxyType

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.requests import generate_request, sampling_message
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb

NOBODY = "127.0.0.1:1"
LENGTH, STOP, DRAINING = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP, pb.FINISH_REASON_DRAINING
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é", None]}}}


class Answer(str, enum.Enum):  # noqa: UP042  # which says another text of itself than StrEnum
    YES = "yes"
    NO = "no"


def constraint(**parameters):
    return generate_request(**parameters).sampling.constraint


def test_what_a_text_must_match_is_sent():
    assert constraint(regex="a|b") == pb.Constraint(regex="a|b")
    assert constraint(regex="") == pb.Constraint(regex="")
    assert constraint(regex="", terminator="").HasField("terminator")
    assert constraint(regex="a+", terminator="\n") == pb.Constraint(regex="a+", terminator="\n")
    two = pb.Constraint(choices=pb.Constraint.Choices(text=["yes", "no"]))
    for choices in (["yes", "no"], ("yes", "no"), iter(["yes", "no"]), {"yes": 1, "no": 2}.keys(), Answer):
        assert constraint(choices=choices) == two
    assert constraint(choices=["", "x"]).choices.text == ["", "x"]
    assert json.loads(constraint(json_schema=SCHEMA).json_schema) == SCHEMA
    assert list(json.loads(constraint(json_schema=SCHEMA).json_schema)["properties"]) == ["b", "a"]
    assert constraint(json_schema=MappingProxyType({})).json_schema == "{}"
    text = ' {"type":\n"integer"}'
    assert constraint(json_schema=text).json_schema == text
    assert not generate_request().sampling.HasField("constraint")
    removed = generate_request(unconstrained=True).sampling
    assert removed.HasField("constraint")
    assert removed.constraint == pb.Constraint()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"regex": b"a"}, r"^regex must be a str"),
        ({"regex": 3}, r"^regex must be a str"),
        ({"regex": "\ud800"}, r"^regex has half of a surrogate pair at position 0"),
        ({"choices": "yes"}, r"^choices must be an iterable of str, such as \['yes', 'no'\], not 'yes'"),
        ({"choices": b"yes"}, r"^choices must be an iterable"),
        ({"choices": 3}, r"^choices must be an iterable"),
        ({"choices": {"yes": 1}}, r"^choices must be an iterable"),
        ({"choices": []}, r"^choices is empty"),
        ({"choices": iter(())}, r"^choices is empty"),
        ({"choices": ["yes", 3]}, r"^choices\[1\] must be a str, not 3"),
        ({"choices": [["yes"]]}, r"^choices\[0\] must be a str"),
        ({"json_schema": "{"}, r"^json_schema is not JSON: .* at line 1, column 2"),
        ({"json_schema": ""}, r"^json_schema is not JSON"),
        ({"json_schema": "[1]"}, r"^json_schema must be a JSON object, not \[1\]"),
        ({"json_schema": "true"}, r"^json_schema must be a JSON object, not True"),
        ({"json_schema": '{"const": NaN}'}, r"^json_schema is not JSON: NaN is not a number of JSON"),
        ({"json_schema": {"const": math.inf}}, r"^json_schema is not JSON"),
        ({"json_schema": {"enum": {1, 2}}}, r"^json_schema is not JSON: Object of type set"),
        ({"json_schema": {"enum": ["\ud800"]}}, r"^json_schema has half of a surrogate pair"),
        ({"json_schema": "[" * 100_000}, r"^json_schema is nested too deep"),
        ({"json_schema": [SCHEMA]}, r"^json_schema must be a dict or JSON text, not \["),
        ({"json_schema": b"{}"}, r"^json_schema must be a dict or JSON text"),
        ({"regex": "a", "choices": ["a"]}, r"^give regex or choices, not both"),
        ({"choices": ["a"], "json_schema": {}}, r"^give choices or json_schema, not both"),
        ({"regex": "a", "unconstrained": True}, r"^give regex or unconstrained, not both"),
        ({"terminator": "\n", "unconstrained": True}, r"^give terminator or unconstrained, not both"),
        ({"terminator": "\n"}, r"^terminator goes with regex, choices or json_schema"),
        ({"regex": "a", "terminator": 3}, r"^terminator must be a str"),
        ({"unconstrained": None}, r"^unconstrained must be True or False"),
        ({"unconstrained": 1}, r"^unconstrained must be True or False"),
    ],
)
async def test_what_no_server_takes_is_an_error_before_any_call(parameters, message):
    for build in (generate_request, sampling_message):
        with pytest.raises((ValueError, TypeError), match=message):
            build(**parameters)
    with Client(NOBODY, retry_seconds=0) as client:
        for call in (client.generate, client.interact, client.interact().update):
            with pytest.raises((ValueError, TypeError), match=message):
                call(**parameters)
    async with AsyncClient(NOBODY, retry_seconds=0) as asynchronous:
        for call in (asynchronous.generate, asynchronous.interact, asynchronous.interact().update):
            with pytest.raises((ValueError, TypeError), match=message):
                call(**parameters)


def test_a_circle_is_not_a_schema():
    circle = {}
    circle["properties"] = circle
    with pytest.raises(ValueError, match=r"^json_schema "):
        constraint(json_schema=circle)


class Gone(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "gone"

    def trailing_metadata(self):
        return ()


def char(position, began):
    """The character that a made-up model generates: another one where the constraint began at another position."""
    return chr(0x400 + position * 7 % 90 + (0 if began is None else (position - began + 1) * 97))


def answers(request, sizes, stop, drains=False):
    """The messages of a made-up server. Its tokens are a position, and where the constraint began."""
    position, began = json.loads(request.resume_token or "[0, null]")
    start = position
    if request.sampling.HasField("constraint"):
        began = position if request.sampling.constraint.WhichOneof("kind") else None
    last = min(start + request.max_chars, stop)
    for size in [*sizes, 0]:
        end = min(position + size, last)
        message = pb.GenerateResponse(position=position, text="".join(char(at, began) for at in range(position, end)))
        message.seed = 7 if position == start else 0
        position = end
        is_last = position == last
        if is_last or (request.resume_every and size % 2) or (drains and size == 0):
            message.resume_token = json.dumps([position, began]).encode()
        if is_last:
            message.finish_reason = STOP if position == stop else LENGTH
            if began is not None:
                message.usage.matches = (position - began) % 3 == 0
        elif drains and size == 0:
            message.finish_reason = DRAINING
        if message.text or message.finish_reason:
            yield message
        if is_last:
            return


CALLS = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=6), st.sampled_from(["break", "drain", "end lost"])))


@given(
    calls=CALLS,
    count=st.integers(1, 60),
    stop=st.integers(1, 80),
    every=st.sampled_from([0, 5]),
    resumed=st.sampled_from(["", "[0, null]", "[2, 1]", "[3, null]"]),
    change=st.sampled_from([{}, {"regex": "a*"}, {"unconstrained": True}]),
)
@settings(max_examples=500, deadline=None)
def test_a_text_that_is_continued_goes_on_in_its_constraint(calls, count, stop, every, resumed, change):
    request = generate_request(max_chars=count, resume_every=every, resume_token=resumed.encode(), **change)
    whole = list(answers(request, [200], stop + 3))
    text, shown, plan = Failover(request, 2, 1e6), [], iter(calls)
    while (call := text.request()) is not None:
        sizes, ending = next(plan, ([200], ""))
        messages = list(answers(call, [1, *sizes] if not shown else sizes, stop + 3, ending == "drain"))
        if ending == "end lost" and messages and messages[-1].finish_reason:
            for name in ("finish_reason", "usage"):  # its token may have arrived with text
                messages[-1].ClearField(name)
        seen = [text.received(message) for message in messages]
        shown += [message for message in seen if message is not None]
        text.ended(Gone())
    if (lost := text.lost_end()) is not None:
        shown.append(lost)
    assert "".join(message.text for message in shown) == "".join(message.text for message in whole)
    if "regex" in change or resumed:
        assert [message.finish_reason for message in shown if message.finish_reason] == [whole[-1].finish_reason]
        assert shown[-1].usage == whole[-1].usage


def test_a_server_that_does_not_know_constraints_is_an_error():
    text = Failover(generate_request(regex="a", max_chars=3))
    text.request()
    with pytest.raises(ServerError, match="the server does not know constraints: its version is too old") as caught:
        text.received(pb.GenerateResponse(text="abc", finish_reason=LENGTH, usage=pb.Usage(generated_chars=3)))
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    free = Failover(generate_request(unconstrained=True, max_chars=3))
    free.request()
    free.received(pb.GenerateResponse(text="abc", finish_reason=LENGTH))
