"""What clients that leave, or do not read, cost: their streams end, and wait."""

import json
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from gateways import run_gateway
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


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_readers_that_take_nothing_cost_little_memory(server):
    """gRPC reads ahead up to 4 MB of a stream, where nobody tells it not to."""
    with run_gateway(server.target) as gateway, server.client() as client, ExitStack() as stack:
        status = Path(f"/proc/{gateway.process.pid}/status")

        def add_readers(count):
            for _ in range(count):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
                connection.sendall(request_of(gateway, stream=True, max_tokens=10**9, logprobs=2))

        def resident():
            return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024

        add_readers(1)
        wait_until(lambda: client.models().streams_parked == 1)
        before = resident()
        add_readers(4)
        wait_until(lambda: client.models().streams_parked == 5, seconds=60)
        assert resident() - before < 8
    with server.client() as client:
        wait_until(lambda: client.models().streams_running == 0)
