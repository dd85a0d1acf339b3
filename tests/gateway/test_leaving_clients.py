"""What clients that leave, or do not read, cost: their streams end, and wait."""

import json
import socket

import pytest
from servers import wait_until


def request_of(gateway, path="/v1/completions", **fields):
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"stream": True, "max_tokens": 10**9}, 1),
        ({"stream": True, "max_tokens": 10**9, "prompt": ["a", "b"], "n": 2}, 4),
        ({"max_tokens": 3_000_000}, 1),
        ({"max_tokens": 300_000, "prompt": ["a", "b"], "best_of": 3}, 6),
        ({"stream": True, "max_tokens": 10**9, "chars_per_second": 0.001}, 1),
    ],
)
def test_a_client_that_leaves_frees_its_slots(gateway, server, fields, count):
    with server.client() as client, socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(request_of(gateway, **fields))
        wait_until(lambda: client.models().streams_running == count)
        connection.close()
        wait_until(lambda: client.models().streams_running == 0)


def test_a_score_ends_with_its_client(gateway, server):
    text = "the cat sat " * 50_000
    with server.client() as client, socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(request_of(gateway, "/v1/score", text=text))
        wait_until(lambda: client.models().streams_running == 1)
        connection.close()
        wait_until(lambda: client.models().streams_running == 0)


def test_a_reader_that_takes_nothing_parks_its_stream(gateway, server):
    with server.client() as client, socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(request_of(gateway, stream=True, max_tokens=10**9, logprobs=20))
        wait_until(lambda: client.models().streams_parked == 1)
        connection.close()
        wait_until(lambda: client.models().streams_running == 0)
