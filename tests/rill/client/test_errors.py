"""ServerError from whatever gRPC, proxies and interceptors raise."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from rill.client.errors import LONGEST_DELAY, ServerError


class Failure(grpc.RpcError):
    def __init__(self, code, details, **trailing):
        self._answers = code, details, [(name.replace("_", "-"), value) for name, value in trailing.items()]

    def code(self):
        return self._answers[0]

    def details(self):
        return self._answers[1]

    def trailing_metadata(self):
        return self._answers[2]


def packed(seconds):
    detail = Any()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    return Status(code=8, details=[detail]).SerializeToString()


@pytest.mark.parametrize("error", [grpc.RpcError("the tracer failed"), grpc.RpcError()])
def test_an_error_of_an_interceptor_without_a_status(error):
    converted = ServerError.from_rpc(error)
    assert converted.code is grpc.StatusCode.UNKNOWN
    assert str(converted) == (str(error) or "RpcError")


@pytest.mark.parametrize(("asked", "waited"), [(3, 3.0), (0, 0.0), (315_576_000_000, LONGEST_DELAY)])
def test_how_long_a_server_asks_to_wait(asked, waited):
    failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", grpc_status_details_bin=packed(asked))
    assert ServerError.from_rpc(failure).retry_seconds == waited


def test_what_is_not_there_is_empty():
    converted = ServerError.from_rpc(Failure(grpc.StatusCode.INTERNAL, "", grpc_status_details_bin=b"\xff"))
    assert (str(converted), converted.retry_seconds, converted.reason) == ("INTERNAL", None, "")
    assert (converted.request_id, converted.resume_token) == ("", b"")
    assert ServerError.from_rpc(Failure(grpc.StatusCode.INTERNAL, "x", x_request_id="id")).request_id == "id"
