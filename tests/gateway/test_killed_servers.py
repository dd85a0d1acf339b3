"""A server behind the gateway is killed under streams; the other one does not know its tokens."""

import json

import httpx
import pytest
from gateways import run_gateway
from servers import run_server

pytestmark = pytest.mark.long


@pytest.mark.parametrize("fields", [{"n": 2}, {"echo": True, "logprobs": 1}, {"prompt": ["the ", "cat"]}])
def test_texts_with_a_forked_state_survive(server, tiny_folder, fields):
    fields = {"prompt": "the ", "seed": 7, "max_tokens": 60_000, **fields}
    with run_server(tiny_folder) as first, run_gateway(f"{first.target},{server.target}") as gateway:
        url = f"{gateway.url}/v1/completions"
        whole = httpx.post(url, json=fields, timeout=60).json()["choices"]
        texts = dict.fromkeys(range(len(whole)), "")
        with httpx.stream("POST", url, json={**fields, "stream": True}, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line)
            for line in lines:
                if line == "data: [DONE]":
                    break
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                texts[choice["index"]] += choice["text"]
                if first.process.poll() is None and min(map(len, texts.values())) > 500:
                    first.process.kill()
                    first.process.wait()
            assert first.process.poll() is not None
            assert line == "data: [DONE]"
        assert list(texts.values()) == [choice["text"] for choice in whole]
