"""Long prompts: they mean the same as short ones, and are encoded in parts, so that other calls need not wait."""

import asyncio
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from calls import joined, refusal
from google.rpc.error_details_pb2 import BadRequest
from random_models import LETTERS

from rill.serve.api.requests import CHECKED_AT_ONCE
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.api.service import TextGeneration
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.text_codec import GivenText, LongPrompt, TextCodec
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import Vocabulary

LONG = "".join(np.random.default_rng(5).choice(LETTERS, CHECKED_AT_ONCE + 5_000))
SAMPLING = pb.Sampling(seed=9)


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield TextGenerationStub(channel)


def generate(stub, **request):
    return list(stub.Generate(pb.GenerateRequest(sampling=SAMPLING, max_chars=60, **request), timeout=60))


def token_after(stub, text, **request):
    """The token of a stream that has read `text`, by Score."""
    return list(stub.Score(pb.ScoreRequest(text=text, **request), timeout=60))[-1].total.resume_token


@pytest.mark.long
def test_a_long_prompt_is_read(stub):
    messages = generate(stub, prompt="\n" + LONG)
    assert joined(messages) == joined(generate(stub, resume_token=token_after(stub, LONG)))
    assert messages[-1].usage.prompt_chars == len(LONG) + 1


@pytest.mark.long
def test_a_long_prompt_is_read_after_a_token(stub):
    begun = generate(stub, prompt="ab")[-1].resume_token
    expected = generate(stub, resume_token=token_after(stub, LONG, resume_token=begun))
    assert joined(generate(stub, resume_token=begun, prompt=LONG)) == joined(expected)


@pytest.mark.parametrize("at", [0, CHECKED_AT_ONCE - 1, CHECKED_AT_ONCE, len(LONG) - 1])
def test_a_character_without_a_symbol_is_named(stub, at):
    prompt = LONG[:at] + "漢" + LONG[at + 1 :]
    error, details = refusal(stub.Generate(pb.GenerateRequest(prompt=prompt)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"prompt: character '漢' (U+6F22) at position {at} " in error.details()
    assert [violation.field for violation in details[BadRequest].field_violations] == ["prompt"]


@pytest.mark.parametrize("head", [[], [3]], ids=["new", "resumed"])
def test_a_slice_of_a_long_prompt_is_that_of_the_array(head):
    codec = TextCodec(Vocabulary(LETTERS))
    prompt, whole = LongPrompt(np.array(head, np.int64), GivenText("To be", codec)), [*head, *codec.encode("To be")]
    assert len(prompt) == len(whole)
    for start in range(len(whole) + 1):
        for end in range(start, len(whole) + 2):
            part = prompt[start:end]
            assert part.tolist() == whole[start:end]
            assert part.dtype == np.int64
    assert prompt[:].tolist() == whole


async def test_other_calls_get_the_event_loop_between_the_parts(tiny, monkeypatch):
    """Another call waits for `CHECKED_AT_ONCE` characters at most, however long a prompt is."""
    model = Model(tiny, Decoder(tiny, CPU), 4, 0, 0.010)
    service = TextGeneration(SimpleNamespace(default=model, all=[model]), ResumeTokens([bytes(32)], 0), ServerConfig())
    seen, turns, reads = {}, 0, threading.Event()
    encode = TextCodec.encode

    def counted(codec, text):
        if threading.current_thread() is threading.main_thread():
            seen[turns] = seen.get(turns, 0) + len(text)
        else:
            assert len(text) < 1000  # of a round
            reads.set()
        return encode(codec, text)

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(TextCodec, "encode", counted)
    context = SimpleNamespace(
        invocation_metadata=tuple, set_trailing_metadata=lambda _: None, time_remaining=lambda: None, write=None
    )
    request = pb.GenerateRequest(prompt="a" * 1_000_000)
    other, call = asyncio.create_task(take_turns()), asyncio.create_task(service.Generate(request, context))
    try:
        async with asyncio.timeout(20):
            while not reads.is_set() and not call.done():
                await asyncio.sleep(0.01)
        assert not call.done(), call.exception()
        assert sum(seen.values()) >= 1_000_000
        assert max(seen.values()) <= CHECKED_AT_ONCE
    finally:
        call.cancel()
        other.cancel()
        await asyncio.gather(call, other, return_exceptions=True)
        await model.wait_until_idle()
        model.engine.stop()
