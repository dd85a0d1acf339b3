"""Clients that do not read, leave, send garbage or come by the thousand; and a server that is killed."""

import asyncio
import base64
import json
import os
import socket
import struct
import time
from contextlib import ExitStack

import httpx
import pytest
from gateways import run_gateway
from servers import started, wait_until

from rill.client.aio import AsyncClient

STREAMS = 64
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)
UPGRADE = (
    b"GET /v1/interact HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def running(server):
    with server.client() as client:
        return client.models().streams_running


def begun(gateway, **fields):
    """A connection on which the events of a completion arrive; it holds few of them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", gateway.port))
    body = json.dumps({"prompt": "the ", "stream": True, **fields}).encode()
    connection.sendall(HEAD % (len(body), body))
    assert connection.recv(300).startswith(b"HTTP/1.1 200 ")
    return connection


def test_a_client_that_leaves_frees_its_slot(gateway, server):
    before = running(server)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(begun(gateway, max_tokens=10**9, chars_per_second=100))
        assert running(server) == before + 8
    wait_until(lambda: running(server) == before)


@pytest.mark.long
def test_a_client_that_does_not_read_loses_its_slot(server):
    before = running(server)
    with run_gateway(server.target, "--stall-seconds", 0.5) as gateway, begun(gateway, max_tokens=10**9, logprobs=20):
        assert running(server) == before + 1
        wait_until(lambda: running(server) == before, seconds=60)


@pytest.mark.long
def test_thousands_of_idle_connections_starve_nobody(server):
    idle = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health HTTP/1.1\r\nX", UPGRADE, b""
    with run_gateway(server.target, "--max-connections", 500) as gateway, ExitStack() as stack:
        for number in range(900):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            connection.sendall(idle[number % 2 or 3 * (number % 4 // 2)])
        started = time.monotonic()
        answer = httpx.post(f"{gateway.url}/v1/completions", json={"prompt": "the ", "max_tokens": 20})
        assert answer.status_code == 200
        assert time.monotonic() - started < 20
        figures = httpx.get(f"{gateway.url}/metrics").text
        (count,) = (line.split()[1] for line in figures.splitlines() if line.startswith("rill_http_connections "))
        assert float(count) <= 501


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x81\x02{}",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x8b\x80\0\0\0\0",  # no such opcode
        b"\x81\xff" + struct.pack("!Q", 2**62) + b"\0\0\0\0",  # a frame of exabytes
        b"\x81\x81\0\0\0\0\xff",  # not UTF-8
        b"\x80\x80\0\0\0\0",  # goes on without a beginning
        os.urandom(500),
        b"",  # leaves
    ],
)
def test_garbage_in_a_websocket_ends_it(gateway, garbage):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(UPGRADE)
        assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert httpx.get(f"{gateway.url}/health").status_code == 200


@pytest.mark.long
async def test_a_server_that_is_killed_loses_no_event_of_64_streams(tiny_folder, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    length = 600
    with started(tiny_folder, key) as first, started(tiny_folder, key) as second:
        with run_gateway(f"{first.target},{second.target}") as gateway:
            arrived = 0

            async def streamed(client, seed):
                nonlocal arrived
                text, ends = "", []
                fields = {"prompt": "the ", "seed": seed, "max_tokens": length, "stream": True, "chars_per_second": 200}
                async with client.stream("POST", f"{gateway.url}/v1/completions", json=fields) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                            text += choice["text"]
                            arrived += len(choice["text"])
                            if choice["finish_reason"]:
                                ends.append(choice["finish_reason"])
                        elif line:
                            ends.append(line)
                return text, ends

            async def killed():
                while arrived < STREAMS * length / 4:
                    await asyncio.sleep(0.01)
                first.process.kill()

            limits = httpx.Limits(max_connections=STREAMS)
            async with httpx.AsyncClient(limits=limits, timeout=60) as client:
                *streams, _ = await asyncio.gather(*(streamed(client, seed) for seed in range(STREAMS)), killed())
        async with AsyncClient(second.target) as client:
            for seed, (text, ends) in enumerate(streams):
                assert ends == ["length", "data: [DONE]"]
                expected = "".join([piece async for piece in client.generate("the ", seed=seed, max_chars=length)])
                assert text == expected


async def test_a_drain_ends_streams_with_a_token(server):
    with run_gateway(server.target) as gateway:
        async with httpx.AsyncClient(timeout=30) as client:
            fields = {"prompt": "the ", "seed": 7, "max_tokens": 10**6, "stream": True, "chars_per_second": 50}
            async with client.stream("POST", f"{gateway.url}/v1/completions", json=fields) as answer:
                text, last = "", []
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        last.append(json.loads(line.removeprefix("data: ")))
                        if "choices" in last[-1]:
                            text += last[-1]["choices"][0]["text"]
                        if len(text) == 5:
                            gateway.process.terminate()
        assert gateway.process.wait(timeout=10) == 0
    ended = next(one for one in last if "error" not in one and one.get("rill", {}).get("resume_token"))
    token = base64.urlsafe_b64decode(ended["rill"]["resume_token"] + "==")
    assert "error" in last[-1]
    with server.client() as sync:
        rest = "".join(sync.generate(resume_token=token, max_chars=10))
        assert text + rest == "".join(sync.generate("the ", seed=7, max_chars=len(text) + 10))


async def test_new_requests_are_refused_while_it_drains(server):
    body = b'{"prompt": "the "}'
    head = ["POST /v1/completions HTTP/1.1", "host: localhost", "content-type: application/json"]
    with run_gateway(server.target) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            # A request whose body is still on its way keeps the gateway from ending.
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write("\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode())
            is_there = 'rill_http_requests_running{path="/v1/completions"} 1.0'
            while is_there not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            gateway.process.terminate()
            while (ready := await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            assert ready.text == "draining\n"
            refused = await client.post("/v1/completions", json={"prompt": "the "})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert (await client.get("/health")).status_code == 200
            writer.write(body)
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            writer.close()
            await writer.wait_closed()
        assert gateway.process.wait(timeout=20) == 0
