"""One stream without an end: the server's memory stays where it was, and so does the size of its tokens.

`make soak` reads 10,000,000 characters.
"""

import os

import grpc
import psutil
import pytest
from servers import run_server

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

pytestmark = pytest.mark.long

CHARACTERS = int(os.environ.get("RILL_CHARACTERS", "200_000"))
MORE = 2000  # characters that are made twice: by the stream and from its last token before them


def test_an_endless_stream_costs_what_a_short_one_does(tiny_folder):
    with run_server(tiny_folder) as running, grpc.insecure_channel(running.target) as channel:
        stub, process = TextGenerationStub(channel), psutil.Process(running.process.pid)
        call = stub.Generate(pb.GenerateRequest(prompt="a", resume_every=1000, sampling=pb.Sampling(seed=11)))
        characters, memory, sizes, last = 0, [], set(), None
        for message in call:
            assert message.position == characters
            characters += len(message.text)
            if message.resume_token:
                sizes.add(len(message.resume_token))
                last = message
            if characters > len(memory) * CHARACTERS / 10:
                memory.append(process.memory_info().rss)
            if characters >= CHARACTERS and message is last:
                break
        text = ""
        for message in call:
            text += message.text
            if len(text) >= MORE:
                break
        call.cancel()
        resumed = stub.Generate(pb.GenerateRequest(resume_token=last.resume_token, max_chars=MORE))
        assert "".join(message.text for message in resumed) == text[:MORE]
    assert len(sizes) == 1
    assert max(memory[2:]) - memory[1] < 3e6  # bytes
