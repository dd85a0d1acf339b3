"""The API as a client sees it: statuses and their details, cancellation, deadlines, health, reflection."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from calls import refusal
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from random_models import LETTERS
from servers import run_server, wait_until

from rill.client.errors import ServerError
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield TextGenerationStub(channel)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        ({"prompt": "abc漢"}, "prompt", "'漢' (U+6F22) at position 3"),
        ({"prompt": "a\x00"}, "prompt", "position 1"),
        ({"prompt": "a" * 1001}, "prompt", "1001 characters; the limit of this server is 1000"),
        ({"max_chars": 2**63}, "max_chars", "2^62"),
        ({"chars_per_second": -1}, "chars_per_second", ">= 0"),
        ({"chars_per_second": NAN}, "chars_per_second", "finite"),
        ({"chars_per_second": INF}, "chars_per_second", "finite"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature", ">= 0"),
        ({"sampling": {"temperature": NAN}}, "sampling.temperature", "nan"),
        ({"sampling": {"temperature": INF}}, "sampling.temperature", "inf"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p", "(0, 1]"),
        ({"sampling": {"top_p": NAN}}, "sampling.top_p", "(0, 1]"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p", "(0, 1]"),
        ({"sampling": {"min_p": -0.5}}, "sampling.min_p", "[0, 1]"),
        ({"sampling": {"min_p": NAN}}, "sampling.min_p", "[0, 1]"),
        ({"sampling": {"logit_bias": {"ab": 1}}}, "sampling.logit_bias", "not one character"),
        ({"sampling": {"logit_bias": {"": 1}}}, "sampling.logit_bias", "not one character"),
        ({"sampling": {"logit_bias": {"漢": 1}}}, "sampling.logit_bias", "vocabulary"),
        ({"sampling": {"logit_bias": {"a": NAN}}}, "sampling.logit_bias", "nan"),
        ({"sampling": {"logit_bias": {"a": INF}}}, "sampling.logit_bias", "inf"),
        ({"sampling": {"logit_bias": dict.fromkeys(LETTERS, -INF)}}, "sampling.logit_bias", "bans every character"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests_name_the_field_and_the_fault(limited_server, request_, field, message):
    with grpc.insecure_channel(limited_server.target) as channel:
        error, details = refusal(TextGenerationStub(channel).Generate(pb.GenerateRequest(**request_)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.details()
    (violation,) = details[BadRequest].field_violations
    assert violation.field == field
    assert message in violation.description


@pytest.fixture(scope="module")
def limited_server(tiny_folder):
    """Two streams, a waiting line of one call, short prompts."""
    with run_server(tiny_folder, "--max-streams", 2, "--max-waiting", 1, "--max-prompt", 1000) as running:
        yield running


def test_a_long_name_is_not_quoted_whole(stub):
    error, _ = refusal(stub.Generate(pb.GenerateRequest(model="x" * 20_000)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error, details = refusal(stub.Generate(pb.GenerateRequest(sampling=pb.Sampling(logit_bias={"漢" * 20_000: 1}))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details[BadRequest].field_violations


def test_what_is_quoted_fits_into_the_metadata(stub):
    """With more, gRPC would randomly replace the status by an error of its own."""
    request = pb.GenerateRequest(sampling=pb.Sampling(logit_bias={"😀" * 2000: 1}))
    for _ in range(20):
        error, details = refusal(stub.Generate(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details[BadRequest].field_violations[0].field == "sampling.logit_bias"


@pytest.mark.parametrize("method", ["Generate", "Score", "ListModels"])
def test_malformed_messages_are_a_bad_request(tiny_folder, method):
    with run_server(tiny_folder) as server:
        with grpc.insecure_channel(server.target) as channel:
            error, details = refusal(channel.unary_stream(f"/rill.v1.TextGeneration/{method}")(b"\xff", timeout=20))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "malformed request" in details[BadRequest].field_violations[0].description
        assert "Traceback" not in server.stop()[1]


def test_any_top_k_is_harmless_in_company(server):
    with server.client() as client:
        texts = [client.generate("a", max_chars=300, seed=1, top_k=k) for k in (57, 2**31 - 1, 2**31, 2**32 - 1, 3)]
        firsts = [next(pieces) for pieces in texts]
        whole = [first + "".join(pieces) for first, pieces in zip(firsts, texts, strict=True)]
    assert whole[0] == whole[1] == whole[2] == whole[3] != whole[4]


def test_unknown_model(stub):
    error, _ = refusal(stub.Generate(pb.GenerateRequest(model="nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "'nope'" in error.details()
    assert "'tiny'" in error.details()


def test_list_models(stub, tiny):
    response = stub.ListModels(pb.ListModelsRequest())
    (model,) = response.models
    assert (model.name, model.model_id, model.cell, model.layers, model.hidden) == ("tiny", tiny.model_id, "gru", 1, 32)
    assert (model.vocabulary_size, model.precision, model.provider) == (len(LETTERS), "fp32", "CPUExecutionProvider")
    assert (model.streamable, model.state_bytes, tuple(model.vocabulary)) == (True, 128, LETTERS)
    assert model.numerics.startswith("onnxruntime-")
    assert not response.draining


def running(client_server):
    with client_server.client() as client:
        response = client.models()
        return response.streams_running, response.streams_waiting


def test_waiting_line(limited_server):
    """Two calls run, one waits, a fourth is refused at once; when one ends, the waiting call runs."""
    with grpc.insecure_channel(limited_server.target) as channel:
        stub = TextGenerationStub(channel)
        calls = [stub.Generate(pb.GenerateRequest(prompt="a")) for _ in range(2)]
        for call in calls:
            next(call)
        waiting = stub.Generate(pb.GenerateRequest(prompt="a", max_chars=10))
        wait_until(lambda: running(limited_server) == (2, 1))

        started = time.monotonic()
        error, details = refusal(stub.Generate(pb.GenerateRequest(prompt="a")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details[RetryInfo].retry_delay.ToMilliseconds() > 0
        assert time.monotonic() - started < 5

        abandoned = waiting
        abandoned.cancel()  # leaves the line
        wait_until(lambda: running(limited_server) == (2, 0))
        waiting = stub.Generate(pb.GenerateRequest(prompt="a", max_chars=10))
        calls[0].cancel()
        messages = list(waiting)
        assert sum(len(m.text) for m in messages) == 10
        assert messages[-1].usage.queued_seconds > 0
        calls[1].cancel()
        wait_until(lambda: running(limited_server) == (0, 0))


def test_cancelled_streams_leave_their_slots(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)
        calls = [stub.Generate(pb.GenerateRequest(prompt="a")) for _ in range(20)]
        for call in calls:
            next(call)
        assert running(server)[0] == 20
        for call in calls:
            call.cancel()
        wait_until(lambda: running(server) == (0, 0))


def test_cancelled_before_anything_was_read(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)
        for _ in range(50):
            stub.Generate(pb.GenerateRequest(prompt="a")).cancel()
        wait_until(lambda: running(server) == (0, 0))
        assert sum(len(m.text) for m in stub.Generate(pb.GenerateRequest(max_chars=10))) == 10


def test_a_client_that_disappears_leaves_its_slot(server):
    channel = grpc.insecure_channel(server.target)
    call = TextGenerationStub(channel).Generate(pb.GenerateRequest(prompt="a"))
    next(call)
    assert running(server)[0] == 1
    channel.close()
    wait_until(lambda: running(server) == (0, 0))


def test_deadlines_end_streams(server):
    with server.client() as client:
        with pytest.raises(ServerError) as caught:
            "".join(client.generate("a", max_chars=0, timeout=0.3))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: running(server) == (0, 0))


def test_a_long_prompt_does_not_hold_up_others(server):
    """More than a hundred thousand characters to read, while other streams get theirs."""
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        long = pool.submit(lambda: "".join(client.generate("a" * 150_000, max_chars=5, seed=1, timeout=100)))
        time.sleep(0.2)
        text = "".join(client.generate("b", max_chars=100, seed=1))
        assert len(text) == 100
        assert not long.done()
        assert len(long.result()) == 5


def test_health(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "rill.v1.TextGeneration"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
            watch = stub.Watch(request)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


def test_reflection(server):
    with grpc.insecure_channel(server.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="rill.v1.TextGeneration"),
        ]
        services, file = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in services.list_services_response.service}
    assert {"rill.v1.TextGeneration", "grpc.health.v1.Health"} <= names
    described = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert described.name == "rill/v1/rill.proto"


def test_the_next_address_is_tried(server):
    with Client(f"127.0.0.1:1, {server.target}") as client:
        assert len("".join(client.generate("a", max_chars=10))) == 10
        assert client.models().models
    with Client("127.0.0.1:1", retry_seconds=0) as client, pytest.raises(ServerError) as caught:
        client.models()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ValueError, match="HOST:PORT"):
        Client("a:1,,b:2")
