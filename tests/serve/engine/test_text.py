"""A text depends on the bundle, the prompt, the parameters and the seed, not on other streams, rounds or readers."""

import asyncio
import time

import grpc
import pytest
from random_models import LETTERS, make_run, save_bundle
from reference_texts import reference
from servers import run_server, wait_until

from rill.client.aio import AsyncClient
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

CASES = [
    ("", {}),
    ("a", {"temperature": 0.5}),
    ("To be", {"temperature": 0.0}),
    ("é" * 300, {"temperature": 1.5}),
    ("Some prompt.\n", {"top_k": 5}),
    ("b", {"top_p": 0.8, "temperature": 0.9}),
    ("c", {"min_p": 0.1}),
    ("d", {"logit_bias": {"e": float("-inf"), "t": 2.0}}),
]


@pytest.mark.parametrize(("prompt", "parameters"), CASES, ids=lambda value: str(value)[:30])
def test_text_is_that_of_the_serving_graph(server, tiny, prompt, parameters):
    with server.client() as client:
        text = "".join(client.generate(prompt, max_chars=1500, seed=42, **parameters))
    assert text == reference(tiny, prompt, 42, 1500, **parameters)


def test_default_parameters_are_those_of_the_contract(server, tiny):
    with server.client() as client:
        messages = list(client.stream(pb.GenerateRequest(max_chars=50)))
    assert "".join(m.text for m in messages) == reference(tiny, "", messages[0].seed, 50)


def test_the_largest_seed_works(server, tiny):
    with server.client() as client:
        assert "".join(client.generate("x", max_chars=20, seed=2**64 - 1)) == reference(tiny, "x", 2**64 - 1, 20)


@pytest.mark.long
async def test_text_is_the_same_among_200_others(server, tiny):
    """Streams of all kinds come and go, some of them cancelled half-way."""

    async def other(client, index):
        prompt, parameters = CASES[index % len(CASES)]
        pieces = client.generate(prompt, max_chars=50 + 13 * index, seed=index, **parameters)
        got = ""
        async for piece in pieces:
            got += piece
            if index % 5 == 0 and len(got) > 200:
                await pieces.aclose()
                return
        assert got == reference(tiny, prompt, index, 50 + 13 * index, **parameters)

    async with AsyncClient(server.target) as client:
        others = [asyncio.create_task(other(client, index)) for index in range(200)]
        texts = []
        for prompt, parameters in CASES:
            texts.append("".join([p async for p in client.generate(prompt, max_chars=3000, seed=42, **parameters)]))
        await asyncio.gather(*others)
    assert texts == [reference(tiny, prompt, 42, 3000, **parameters) for prompt, parameters in CASES]


@pytest.mark.parametrize("milliseconds", [0, 0.3, 40])
def test_text_is_the_same_in_rounds_of_any_length(tiny_folder, tiny, milliseconds):
    with run_server(tiny_folder, "--round-milliseconds", milliseconds) as other, other.client() as client:
        company = [client.generate("a", max_chars=0, seed=seed) for seed in range(5)]
        for pieces in company:
            next(pieces)
        text = "".join(client.generate("To be", max_chars=2500, seed=1))
        for pieces in company:
            pieces.close()
    assert text == reference(tiny, "To be", 1, 2500)


@pytest.mark.long
def test_text_is_the_same_for_a_slow_reader(server, tiny):
    """A stream whose reader stops is parked after a bounded amount, costs nothing, and continues where it was."""
    count = 130_000
    # Left to itself, gRPC's client reads megabytes ahead of its application.
    options = [("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(server.target, options) as channel, server.client() as client:
        stub = TextGenerationStub(channel)
        call = stub.Generate(pb.GenerateRequest(prompt="a", max_chars=count, sampling=pb.Sampling(seed=3)))
        got = next(call).text
        wait_until(lambda: client.models().streams_parked == 1, seconds=60)
        got += "".join(message.text for message in call)
    assert got == reference(tiny, "a", 3, count)


def test_messages_follow_one_another(server):
    with server.client() as client:
        messages = list(client.stream(pb.GenerateRequest(prompt="To be", max_chars=5000, sampling=pb.Sampling(seed=5))))
    assert len(messages[0].text) == 1
    assert messages[0].seed == 5
    assert all(message.seed == 0 for message in messages[1:])
    position = 0
    for message in messages:
        assert message.position == position
        position += len(message.text)
    assert position == 5000
    assert {m.finish_reason for m in messages[:-1]} <= {pb.FINISH_REASON_UNSPECIFIED}
    assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH
    usage = messages[-1].usage
    assert (usage.prompt_chars, usage.generated_chars) == (5, 5000)
    assert 0 < usage.queued_seconds <= usage.first_char_seconds <= usage.total_seconds
    assert len(messages) < 2500  # no message per character


def test_one_character_is_one_message(server):
    with server.client() as client:
        messages = list(client.stream(pb.GenerateRequest(max_chars=1)))
    assert [(len(m.text), m.finish_reason) for m in messages] == [(1, pb.FINISH_REASON_LENGTH)]
    assert messages[0].usage.prompt_chars == 0


def test_seeds_differ_unless_given(server):
    with server.client() as client:
        seeds = {next(iter(client.stream(pb.GenerateRequest(max_chars=1)))).seed for _ in range(5)}
    assert len(seeds) == 5


def test_two_clients_on_one_channel(server, tiny):
    with grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)
        calls = [
            stub.Generate(pb.GenerateRequest(prompt="x", max_chars=20_000, sampling=pb.Sampling(seed=seed)))
            for seed in (1, 2)
        ]
        texts = ["", ""]
        for messages in zip(*calls, strict=False):
            for index, message in enumerate(messages):
                texts[index] += message.text
        for index, call in enumerate(calls):
            texts[index] += "".join(message.text for message in call)
    # zip may take one message more from the first call than from the second: lengths tell.
    assert texts[1] == reference(tiny, "x", 2, 20_000)
    assert len(set(texts[0])) > 5


def test_two_models_in_one_server(tmp_path, tiny_folder, tiny):
    other = save_bundle(make_run(symbols=("<unk>", *LETTERS), layers=2, embedding=4, seed=4), tmp_path / "other")
    with run_server(tiny_folder, tmp_path / "other") as running:
        assert "models: tiny, other; provider: CPUExecutionProvider" in running.line
        with running.client() as client:
            assert [model.name for model in client.models().models] == ["tiny", "other"]
            assert "".join(client.generate("x", max_chars=99, seed=1)) == reference(tiny, "x", 1, 99)
            # `<unk>` stands for what the second model does not know.
            assert "".join(client.generate("漢x", model="other", max_chars=99, seed=1)) == reference(
                other, "漢x", 1, 99
            )


def test_paced_streams_keep_their_pace(server, tiny):
    with server.client() as client:
        started = time.monotonic()
        text = "".join(client.generate("x", max_chars=41, seed=1, chars_per_second=50))
        assert time.monotonic() - started > 0.75  # 40 intervals of 20 ms
    assert text == reference(tiny, "x", 1, 41)


def test_endless_streams_run_until_they_are_cancelled(server):
    with server.client() as client:
        pieces = client.generate("x", max_chars=0, seed=1)
        count = 0
        while count < 100_000:
            count += len(next(pieces))
        pieces.close()


def test_sync_and_async_clients_agree(server):
    async def collect():
        async with AsyncClient(server.target) as client:
            return [piece async for piece in client.generate("To", max_chars=300, seed=9, temperature=0.7)]

    with Client(server.target) as client:
        assert "".join(client.generate("To", max_chars=300, seed=9, temperature=0.7)) == "".join(asyncio.run(collect()))
