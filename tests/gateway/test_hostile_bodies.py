"""Whatever a body holds, its sender gets an answer, and a refusal that names a field or the body."""

import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["the ", "a", "\ud800", "e\u0301", "1", "-1", "1e999", "\x00"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SMALL = st.integers(-2, 3) | st.sampled_from([2**64, 1.5, "2", True])
FIELDS = {
    **dict.fromkeys(
        (
            *("model", "prompt", "echo", "temperature", "top_p", "min_p", "seed", "stop", "logit_bias", "stream"),
            *("stream_options", "user", "resume_token", "include_stop_str_in_output", "return_token_ids", "suffix"),
            *("response_format", "frequency_penalty", "other", "text", "as_prompt", "tokens"),
            *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "terminator"),
        ),
        ANYTHING,
    ),
    **dict.fromkeys(("n", "best_of", "max_tokens", "logprobs", "prompt_logprobs", "top_k", "top_logprobs"), SMALL),
    "resume_every": SMALL,
    "chars_per_second": st.sampled_from([-1, 0, 1e6, 1e39, "fast"]),
}
VALID = {
    "prompt": st.sampled_from(["the ", ["a", "b"], [1, 2], [[1], [2, 3]], "", [""]]),
    "max_tokens": st.integers(0, 3),
    "echo": st.booleans(),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "logprobs": st.integers(0, 3),
    "seed": st.integers(0, 2**64 - 1),
    "stop": st.sampled_from(["a", ["e", "th"]]),
    "logit_bias": st.dictionaries(st.integers(0, 5).map(str), st.floats(-200, 200), max_size=2),
}
PATHS = st.sampled_from(["/v1/completions", "/v1/completions", "/v1/score", "/tokenize", "/detokenize"])


@pytest.fixture(scope="module")
def http(gateway):
    with httpx.Client(base_url=gateway.url, headers={"content-type": "application/json"}) as client:
        yield client


def check(answer):
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert error["param"] or "body" in error["message"]
    elif answer.headers["content-type"].startswith("application/json"):
        json.loads(answer.text, parse_constant=pytest.fail)  # NaN is not JSON
    else:
        assert answer.text.isascii()
        assert answer.text.endswith("\n\n")
        assert "data: [DONE]" in answer.text or '"error"' in answer.text


SOME = st.lists(st.sampled_from(list(FIELDS)), unique=True, max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)


@given(path=PATHS, fields=SOME)
@settings(max_examples=20)
def test_any_fields(http, path, fields):
    check(http.post(path, content=json.dumps(fields)))


@given(fields=st.fixed_dictionaries({}, optional=VALID), other=st.sampled_from(list(FIELDS)), data=st.data())
@settings(max_examples=20)
def test_one_field_is_wrong(http, fields, other, data):
    check(http.post("/v1/completions", content=json.dumps({**fields, other: data.draw(FIELDS[other])})))


@given(path=PATHS, body=st.binary(max_size=40) | st.text(st.sampled_from('{}[]":,0e.-\\u d8a'), max_size=30))
@settings(max_examples=20)
def test_any_bytes(http, path, body):
    check(http.post(path, content=body))
