"""A gateway process before a real server."""

import httpx


def test_it_lists_the_models(gateway):
    answer = httpx.get(f"{gateway.url}/v1/models")
    assert answer.status_code == 200
    assert [model["object"] for model in answer.json()["data"]] == ["model"]


def test_it_answers_while_it_lives(gateway):
    assert httpx.get(f"{gateway.url}/health").status_code == 200
