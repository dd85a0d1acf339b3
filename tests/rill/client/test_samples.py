"""Calls with many seeds: what is repeated after a break, and what an older server answers."""

import grpc
import pytest

from rill.client.errors import ServerError
from rill.client.samples import SampleCalls, TooOldForSamplesError, may_be_sampled, with_seeds
from rill.v1 import rill_pb2 as pb

REQUEST = with_seeds(pb.GenerateRequest(prompt="a", max_chars=9, sampling=pb.Sampling(seed=3)), [5, 6, 7])


def answer(*indexes):
    return pb.GenerateResponse(samples=[pb.Sample(index=index, text="b") for index in indexes])


def test_a_call_that_breaks_is_repeated_for_the_rest():
    calls = SampleCalls(REQUEST)
    assert calls.request() == REQUEST
    assert not REQUEST.sampling.HasField("seed")
    assert [sample.index for sample in calls.received(answer(0, 1)).samples] == [0, 1]
    calls.ended(None)
    assert list(calls.request().seeds) == [7]
    assert [sample.index for sample in calls.received(answer(0)).samples] == [2]
    calls.ended(None)
    assert calls.request() is None


@pytest.mark.parametrize("message", [answer(1), answer(0, 0), answer(0, 1, 2, 3)])
def test_texts_of_other_seeds_are_an_error(message):
    calls = SampleCalls(REQUEST)
    calls.request()
    with pytest.raises(ServerError, match="arrived instead of") as caught:
        calls.received(message)
    assert caught.value.code is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize(
    "message", [pb.GenerateResponse(text="b"), pb.GenerateResponse(finish_reason=pb.FINISH_REASON_STOP)]
)
def test_a_server_that_ignores_the_seeds_is_too_old(message):
    calls = SampleCalls(REQUEST)
    calls.request()
    with pytest.raises(TooOldForSamplesError):
        calls.received(message)


def test_which_requests_can_share_calls():
    assert may_be_sampled(pb.GenerateRequest(max_chars=16_384, logprobs=0))
    for other in ({"max_chars": 0}, {"max_chars": 16_385}, {"logprobs": 1}, {"chars_per_second": 1}):
        assert not may_be_sampled(pb.GenerateRequest(**{"max_chars": 5, **other}))
    for count in (0, 1025):
        with pytest.raises(ValueError, match="1 to 1024"):
            with_seeds(REQUEST, range(count))
