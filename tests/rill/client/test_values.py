"""Parameters as programs have them: each works, or is an error before any call that names it."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.client import values
from rill.client.aio import AsyncClient
from rill.client.requests import generate_request
from rill.client.security import Security
from rill.client.sync import Client

NOBODY = "127.0.0.1:1"  # a call to it would be a ServerError
WHOLE = ["max_chars", "top_k", "seed", "logprobs", "resume_every"]
NUMBERS = ["temperature", "top_p", "min_p", "chars_per_second"]
BAD = {
    "max_chars": [-1, 2**62, 2**63, 2**64, 10**400, 400.0, 1.5, True, "400", Decimal(400), math.inf, math.nan, [400]],
    "top_k": [-1, 2**32, 3.0, True, "3"],
    "seed": [-1, 2**64, -(2**63), 7.0, False, "7", b"7", np.float64(7), np.int64(-1)],
    "logprobs": [-1, 21, 999, 2.0, True, "2"],
    "resume_every": [-1, 2**64, 1.0, None, "64"],
    "temperature": [
        -1,
        -0.5,
        1e39,
        float("1e400"),
        math.nan,
        -math.inf,
        "0.7",
        True,
        1j,
        [0.7],
        10**400,
        Decimal("NaN"),
    ],
    "top_p": [0, -1, 1.01, math.nan, math.inf, "1", 1e-60],
    "min_p": [-0.1, 1.01, math.nan, "0.1", True],
    "chars_per_second": [-1, math.inf, math.nan, 1e39, "60", None],
    "logit_bias": [
        {"a": math.nan},
        {"a": math.inf},
        {"a": 1e39},
        {"a": "1"},
        {1: 1.0},
        {"\ud800": 1},
        [("a", 1)],
        "a",
        3,
    ],
    "stop": [[""], "", [1], b"the", 5, ["a", None], {"a": 1}, [["a"]], ["\udc80"]],
    "include_stop": ["no", 1, None],
    "prompt": [None, b"a", 3, "\ud83d", ["a"]],
    "model": [None, b"m", 3],
    "resume_token": ["token", None, 3],
}
BAD_OF_SCORES = {
    "text": [None, b"a", 3, "\ud83d", ["a"]],
    "top_logprobs": [-1, 21, 2.0, True, "2"],
    "as_prompt": [None, 1, "yes"],
    "include_end": [None, 1, "yes"],
    "resume_token": ["token", None],
    "model": [None, b"m"],
}
BAD_OF_CALLS = {
    "timeout": [-1, -math.inf, math.nan, "5", True, [5]],
    "request_id": [None, 5, b"id", "a b", "é", "a\n", "x" * 129],
}
GOOD = {
    "max_chars": [None, 0, 1, 2**62 - 1, np.int64(400), np.uint8(4)],
    "top_k": [None, 0, 2**32 - 1, np.int32(3)],
    "seed": [None, 0, 2**64 - 1, np.uint64(2**64 - 1)],
    "logprobs": [None, 0, 20],
    "temperature": [None, 0, 1, 0.7, Decimal("0.7"), Fraction(7, 10), np.float32(0.7), values.LARGEST_FLOAT32],
    "top_p": [None, 1, 0.5, np.float64(0.5)],
    "logit_bias": [None, {}, {"a": -math.inf}, {"a": 1, "b": np.float32(2)}],
    "stop": [(), None, "the", ["a", "b"], ("a",), iter(["a"]), {"a"}],
    "include_stop": [True, np.True_],
    "resume_token": [b"", bytearray(b"t"), memoryview(b"t")],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD.items() for value in bad])
def test_a_bad_value_is_named_before_any_call(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        generate_request(**{name: value})
    with Client(NOBODY, retry_seconds=0) as client:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            client.generate(**{name: value})
        session = client.interact()
        for method in (client.interact, session.update, session.generate, session.stream):
            if name in method.__annotations__ and not (method == session.update and value is None):
                with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
                    method(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD_OF_SCORES.items() for value in bad])
async def test_a_bad_value_of_a_score_is_named_before_any_call(name, value):
    given = {"text": "a", name: value}
    with Client(NOBODY, retry_seconds=0) as client, pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        client.score(**given)
    async with AsyncClient(NOBODY, retry_seconds=0) as client:
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            client.score(**given)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD_OF_CALLS.items() for value in bad])
async def test_a_bad_value_of_a_call_is_named_before_it(name, value):
    given = {name: value}
    client = Client(NOBODY, retry_seconds=0)
    for call in (client.generate, client.interact, client.models, lambda **given: client.score("a", **given)):
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            call(**given)
    client.close()
    async with AsyncClient(NOBODY, retry_seconds=0) as asynchronous:
        for begin in (asynchronous.generate, asynchronous.interact, lambda **given: asynchronous.score("a", **given)):
            with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
                begin(**given)
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
            await asynchronous.models(**given)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_how_a_client_is_made_is_checked(kind):
    for target in (None, ["a:1", "b:2"], 50051, b"a:1", ("a", 1)):
        with pytest.raises(TypeError, match=r"^target must be a str"):
            kind(target)
    for wrong in (
        {"token": None},
        {"token": b"secret"},
        {"server_name": None},
        {"root_certificates": "pem"},
        {"certificate": b"pem"},
        {"certificate": (b"key",)},
        {"certificate": ("key", "chain")},
    ):
        with pytest.raises(TypeError, match=f"^{next(iter(wrong))} must be ") as caught:
            kind("a:1", security=Security(**wrong))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["retry_seconds", "connect_seconds"])
async def test_how_long_a_client_tries_is_checked(name):
    for seconds in (-1, math.nan, -math.inf, "5", True, [5], 1j):
        for kind in (Client, AsyncClient):
            with pytest.raises((ValueError, TypeError), match=rf"^{name} must be a number"):
                kind("a:1", **{name: seconds})
    for seconds in (0, 0.5, math.inf, 1e300, 10**400, Decimal(3), np.float32(2)):
        Client("a:1", **{name: seconds}).close()
        await AsyncClient("a:1", **{name: seconds}).close()


def test_what_is_read_is_checked_before_a_session_changes(server):
    with server.client() as client, client.interact(seed=5) as session:
        for text in (b"a", None, "\ud83d"):
            with pytest.raises((ValueError, TypeError), match=r"^text "):
                session.feed(text)
        assert session.feed("a").chars == 1
        with pytest.raises(TypeError, match=r"^request must be a GenerateRequest"):
            client.stream("To be")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, good in GOOD.items() for value in good])
def test_a_good_value_is_sent(name, value):
    generate_request(**{name: value})


@given(st.sampled_from(WHOLE), st.integers() | st.floats() | st.booleans() | st.text(max_size=3) | st.none())
@settings(max_examples=300)
def test_whole_numbers_are_sent_as_they_are_or_named(name, value):
    try:
        request = generate_request(**{name: value})
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"{name} must be ")  # noqa: PT017
    else:
        sent = getattr(request.sampling if name in ("top_k", "seed") else request, name)
        assert sent == (value or 0) or (name == "max_chars" and value is None and sent == 400)


@given(st.sampled_from(NUMBERS), st.integers() | st.floats() | st.decimals() | st.fractions())
@settings(max_examples=300)
def test_numbers_are_sent_as_a_float32_or_named(name, value):
    try:
        request = generate_request(**{name: value})
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"{name} must be ")  # noqa: PT017
    else:
        assert getattr(request if name == "chars_per_second" else request.sampling, name) == np.float32(float(value))


def test_a_text_without_a_limit_is_bounded():
    assert generate_request("a").max_chars == generate_request("a", max_chars=None).max_chars == 400
    assert generate_request("a", max_chars=0).max_chars == 0


def test_a_text_as_stop_is_one_stop():
    assert generate_request(stop="the").stop == ["the"]
    assert generate_request(stop=np.str_("the")).stop == ["the"]


def test_a_timeout_of_ages_is_none():
    for ages in (None, math.inf, 1e9, 1e300, 10**400, Decimal("Infinity")):
        assert values.timeout(ages) is None
    assert [values.timeout(some) for some in (0, 0.5, np.float32(2), Decimal(3))] == [0.0, 0.5, 2.0, 3.0]
