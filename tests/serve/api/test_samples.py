"""Many texts in one Generate call: each is that of a call with its seed alone, whatever else the server does."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import fsum

import grpc
import pytest
from calls import joined, refusal
from google.rpc.error_details_pb2 import BadRequest
from random_models import make_run, save_bundle
from servers import run_server, wait_until

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import LONGEST, Vocabulary

SEEDS = [0, 1, 7, 7, 2**53, 2**64 - 1, *range(100, 120)]


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_run):
    folder = tmp_path_factory.mktemp("samples")
    ends = Vocabulary(("^", "$", "!", "C", "l", "Cl"), LONGEST, "^", ("$", "!"))
    save_bundle(tiny_run, folder / "tiny")
    save_bundle(make_run(ends, hidden=12), folder / "ends")
    with (
        run_server(folder / "tiny", folder / "ends", "--max-streams", "6", "--max-waiting", "40") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = TextGenerationStub(channel)
        stub.server = server
        yield stub


def samples(stub, seeds, **request):
    messages = list(stub.Generate(pb.GenerateRequest(seeds=seeds, **request), timeout=60))
    for message in messages:
        assert message == pb.GenerateResponse(samples=message.samples)
    made = [sample for message in messages for sample in message.samples]
    assert [sample.index for sample in made] == list(range(len(seeds)))
    return made


def alone(stub, seed, **request):
    request = pb.GenerateRequest(**request)
    request.sampling.seed = seed
    *_, last = messages = list(stub.Generate(request, timeout=60))
    made = pb.Sample(text=joined(messages), finish_reason=last.finish_reason, chars=last.usage.generated_chars)
    if request.HasField("logprobs"):
        made.logprob = fsum(entry.logprob for message in messages for entry in message.logprobs)
    if last.usage.HasField("matches"):
        made.matches = last.usage.matches
    return made


REQUESTS = {
    "characters": {"model": "tiny", "max_chars": 20},
    "prompt": {"model": "tiny", "max_chars": 20, "prompt": "ab a", "sampling": pb.Sampling(temperature=0.8)},
    "stop": {"model": "tiny", "max_chars": 60, "stop": ["b", "a "], "include_stop": True},
    "held back": {"model": "tiny", "max_chars": 7, "stop": ["zzzzzzzz", "aaaaaa"]},
    "logprobs": {"model": "tiny", "max_chars": 150, "logprobs": 0, "stop": ["ba"]},
    "filters": {"model": "tiny", "max_chars": 20, "sampling": pb.Sampling(top_k=3, logit_bias={"a": -1})},
    "one": {"model": "tiny", "max_chars": 1},
    "ends": {"model": "ends", "max_chars": 50, "logprobs": 0},
    "ends and prompt": {"model": "ends", "max_chars": 50, "prompt": "ClC"},
    "ends and stop": {"model": "ends", "max_chars": 50, "stop": ["Cl"]},
    "constraint": {
        "model": "tiny",
        "max_chars": 9,
        "sampling": pb.Sampling(constraint=pb.Constraint(regex="[ab]{2,12}")),
    },
    "constrained end": {
        "model": "ends",
        "max_chars": 9,
        "prompt": "C",
        "sampling": pb.Sampling(constraint=pb.Constraint(regex="(Cl|C)*")),
    },
}  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_each_is_the_text_of_a_call_of_its_own(served, request_):
    made = samples(served, SEEDS, **request_)
    with ThreadPoolExecutor(6) as pool:
        expected = list(pool.map(lambda seed: alone(served, seed, **request_), SEEDS))
    for index, sample in enumerate(expected):
        sample.index = index
    assert made == expected


def test_a_crowd_gets_the_same_texts_beside_other_calls(served):
    request = {"model": "ends", "max_chars": 40}
    expected = samples(served, SEEDS, **request)
    with ThreadPoolExecutor(16) as pool:
        crowd = [pool.submit(samples, served, SEEDS[shift:] + SEEDS[:shift], **request) for shift in range(10)]
        single = [pool.submit(alone, served, SEEDS[8], **request) for _ in range(6)]
        for shift, made in enumerate(crowd):
            texts = [sample.text for sample in expected]
            assert [sample.text for sample in made.result()] == texts[shift:] + texts[:shift]
        assert {text.result().text for text in single} == {expected[8].text}


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        ({"resume_token": b"x"}, "resume_token", "seeds"),
        ({"resume_every": 5}, "resume_every", "seeds"),
        ({"chars_per_second": 5}, "chars_per_second", "seeds"),
        ({"logprobs": 1}, "logprobs", "must be 0"),
        ({"sampling": pb.Sampling(seed=0)}, "sampling.seed", "exclude"),
        ({"max_chars": 0}, "max_chars", "from 1 to 16384 beside seeds, not without a limit"),
        ({"max_chars": 16_385}, "max_chars", "16384"),
        ({"max_chars": 2**63}, "max_chars", "2^62"),
        ({"seeds": range(1025)}, "seeds", "there are 1025 seeds; the limit is 1024"),
        ({"prompt": "漢"}, "prompt", "漢"),
    ],
)
def test_what_does_not_go_with_seeds_is_named(served, request_, field, words):
    request = pb.GenerateRequest(**{"model": "tiny", "max_chars": 5, "seeds": [1], **request_})
    error, details = refusal(served.Generate(request, timeout=60))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details[BadRequest].field_violations
    assert violation.field == field
    assert words in error.details()


def test_calls_that_end_early_give_their_slots_back(served):
    request = pb.GenerateRequest(model="tiny", max_chars=16_384, seeds=range(1024))
    running = lambda: served.ListModels(pb.ListModelsRequest()).streams_running  # noqa: E731
    calls = [served.Generate(request) for _ in range(6)]
    wait_until(lambda: running() == 6)
    for call in calls:
        call.cancel()
    wait_until(lambda: running() == 0)
    error, _ = refusal(served.Generate(request, timeout=0.7))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: running() == 0)
    assert len(samples(served, [1], model="tiny", max_chars=3)) == 1


def test_a_call_takes_one_slot_and_the_line_stays_bounded(tmp_path, tiny_run):
    save_bundle(tiny_run, tmp_path / "tiny")
    request = pb.GenerateRequest(max_chars=16_384, seeds=range(1024))
    with (
        run_server(tmp_path / "tiny", "--max-streams", "2", "--max-waiting", "0") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = TextGenerationStub(channel)
        first = stub.Generate(request)
        wait_until(lambda: stub.ListModels(pb.ListModelsRequest()).streams_running == 1)
        assert alone(stub, 3, max_chars=5).chars == 5
        second = stub.Generate(request)
        wait_until(lambda: stub.ListModels(pb.ListModelsRequest()).streams_running == 2)
        error, _ = refusal(stub.Generate(request, timeout=60))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        second.cancel()


def test_a_server_that_shuts_down_sends_the_texts_that_it_has(tmp_path, tiny_run):
    save_bundle(tiny_run, tmp_path / "tiny")
    with (
        run_server(tmp_path / "tiny", "--drain-seconds", "0") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub, request = TextGenerationStub(channel), {"max_chars": 2000}
        call = stub.Generate(pb.GenerateRequest(seeds=range(1024), **request), timeout=60)
        got = list(next(call).samples)
        server.process.terminate()
        with suppress(grpc.RpcError):
            for message in call:
                got += message.samples
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert [sample.index for sample in got] == list(range(len(got)))
        assert all(sample.chars == 2000 for sample in got)
