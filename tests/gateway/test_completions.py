"""`POST /v1/completions` of a gateway process before a real server."""

import json

import httpx
import pytest

from rill.client.seeds import seed_of


def events_of(answer):
    """The chunks of a stream of events, and what stands at its end."""
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    end = data.pop() if data[-1] == "[DONE]" else None
    return [json.loads(one) for one in data], end


@pytest.fixture
def post(gateway):
    def send(**fields):
        return httpx.post(f"{gateway.url}/v1/completions", json=fields)

    return send


def generated(server, prompt="", **parameters):
    with server.client() as client:
        return "".join(client.generate(prompt, **parameters))


def test_a_text_is_the_servers(post, server):
    answer = post(prompt="the ", seed=7).json()
    (choice,) = answer["choices"]
    assert choice["text"] == generated(server, "the ", seed=7, max_chars=16)
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}


def test_events_join_to_the_text(post, server):
    answer = post(prompt="the ", seed=7, max_tokens=300, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks, end = events_of(answer)
    assert end == "[DONE]"
    *chunks, last = chunks
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == generated(server, "the ", seed=7, max_chars=300)
    assert len(chunks[0]["choices"][0]["text"]) == 1  # at once
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 300, "total_tokens": 304}


def test_a_token_continues_the_text(post, server):
    whole = generated(server, "the ", seed=7, max_chars=40)
    first = post(prompt="the ", seed=7, max_tokens=15).json()
    rest = post(resume_token=first["rill"]["resume_token"], max_tokens=25).json()
    assert first["choices"][0]["text"] + rest["choices"][0]["text"] == whole
    assert first["rill"]["seed"] == rest["rill"]["seed"] == "7"
    assert rest["rill"]["position"] == 40


def test_samples_have_the_seeds_of_the_contract(post, server):
    answer = post(prompt=["the ", "cat"], n=2, seed=7).json()
    seeds = [7, seed_of(7, 1), seed_of(7, 1), seed_of(seed_of(7, 1), 1)]
    prompts = ["the ", "the ", "cat", "cat"]
    texts = [generated(server, prompt, seed=seed, max_chars=16) for prompt, seed in zip(prompts, seeds, strict=True)]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["rill"]["seed"] for choice in answer["choices"]] == list(map(str, seeds))


def test_a_field_that_is_wrong_is_named(post):
    answer = post(prompt="the ", temperature="hot")
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": 'temperature must be a number from 0 to 3.4e38, not "hot"',
        "type": "invalid_request_error",
        "param": "temperature",
        "code": None,
    }


def test_a_bias_names_symbols_that_the_model_has(post):
    """Not one beyond the last, which is no fault of the gateway's."""
    answer = post(prompt="the ", logit_bias={"56": 1, "57": 1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logit_bias"
    assert "57 is not the id of a symbol; those of the model are 0 to 56" in answer.json()["error"]["message"]
