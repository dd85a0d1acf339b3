"""`GET /v1/load`: how busy a server is, of how many streams it has slots for."""

import httpx


def test_it_says_what_is_served_and_how_busy_the_server_is(gateway, server):
    answer = httpx.get(f"{gateway.url}/v1/load")
    assert answer.status_code == 200
    load = answer.json()
    [model] = load["models"]
    with server.client() as client:
        info = client.models().models[0]
    assert model["name"] == info.name
    assert (model["precision"], model["hidden"], model["streamable"]) == (info.precision, info.hidden, True)
    assert "vocabulary" not in model
    assert load["max_streams"] == 4096
    assert load["streams_waiting"] == 0
    assert load["draining"] is False
