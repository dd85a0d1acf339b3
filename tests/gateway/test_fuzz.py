"""A real gateway among hostile clients: broken heads, bodies and frames; valid texts beside them."""

import asyncio
import json
import re
from random import Random

import httpx
import psutil
import pytest
from fuzz_inputs import message, mutated
from gateways import run_gateway
from google.protobuf import json_format
from servers import wait_until

from rill.v1 import rill_pb2 as pb

HOSTILE = 8  # at once
HEADS = [
    b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n" % pair + b"Content-Length: %d\r\n\r\n%b"
    for pair in [(b"/v1/completions", b"localhost"), (b"/v1/score", b"127.0.0.1"), (b"/tokenize", b"[::1]")]
]
OTHERS = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\nX-Request-Id: y\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"n":\r\n2\r\n1}\r\n0\r\n\r\n',
]
UPGRADE = (
    b"GET /v1/interact HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
BODIES = [
    {"prompt": "the ", "max_tokens": 20, "stream": True},
    {"prompt": ["a", "b"], "n": 2, "logprobs": 3, "echo": True},
    {"text": "the cat", "prompt": "the cat", "top_logprobs": 2},
]
VALID = {"prompt": "the ", "seed": 7, "max_tokens": 60, "logprobs": 1}


def framed(payload, opcode=1):
    """A frame of a client."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + b"\0\0\0\0" + payload


def hostile(random):
    """What one connection sends."""
    if random.random() < 0.4:
        frames = [b'{"open": {}}'] if random.random() < 0.8 else []
        for _ in range(random.randrange(1, 8)):
            action = json_format.MessageToJson(message(random, pb.InteractRequest, [b""])).encode()[:60_000]
            frames.append(mutated(random, action, [action]) if random.random() < 0.3 else action)
        sent = b"".join(framed(frame[:60_000], random.choice((1, 1, 1, 1, 2, 0, 9))) for frame in frames)
        return UPGRADE + (mutated(random, sent, [sent]) if random.random() < 0.2 else sent)
    if random.random() < 0.3:
        sent = random.choice(OTHERS)
    else:
        body = json.dumps(random.choice(BODIES)).encode()
        body = mutated(random, body, [body]) if random.random() < 0.7 else body
        sent = random.choice(HEADS) % (len(body), body)
    return mutated(random, sent, [sent]) if random.random() < 0.5 else sent


async def attack(port, random):
    """Send it, wait a moment for an answer, and leave without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(hostile(random))
        if random.random() < 0.3:
            writer.write_eof()
        async with asyncio.timeout(random.choice((0.01, 0.2))):
            while chunk := await reader.read(65_536):
                answer += chunk
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def running(server):
    with server.client() as client:
        return client.models().streams_running


@pytest.mark.parametrize("attacks", [200, pytest.param(4000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
async def test_valid_texts_among_hostile_clients(server, attacks):
    random, statuses, before = Random(attacks), set(), running(server)
    with run_gateway(server.target, "--max-body", 100_000, "--no-access-log") as gateway:
        process = psutil.Process(gateway.process.pid)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            choice = (await client.post("/v1/completions", json=VALID)).json()["choices"]
            files, left = process.num_fds(), attacks

            async def attack_on():
                nonlocal left
                while left > 0:
                    left -= 1
                    statuses.update(await attack(gateway.port, random))

            async def ask_on():
                while left > 0:
                    answer = await client.post("/v1/completions", json=VALID)
                    if answer.status_code != 429:  # others may have all slots
                        assert answer.json()["choices"] == choice

            async with asyncio.TaskGroup() as group:
                for _ in range(HOSTILE):
                    group.create_task(attack_on())
                group.create_task(ask_on())
            wait_until(lambda: running(server) == before)
            wait_until(lambda: process.num_fds() <= files + HOSTILE)
        assert {101, 200, 400} <= statuses
        assert not statuses & {500, 501, 502}
        gateway.process.terminate()
        log = gateway.process.communicate(timeout=20)[1]
    assert "Traceback" not in log, log[-3000:]
