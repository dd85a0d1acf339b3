"""How lines become calls and scores become lines again: the queue alone, without connections."""

import math

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from rill.client.errors import ServerError
from rill.client.lines import CALLS, CHARS_AT_ONCE, LINES_AT_ONCE, MOST_CHARS, MOST_LINES, LineQueue, LineScore
from rill.client.retry import FirstContact
from rill.v1 import rill_pb2 as pb

Code = grpc.StatusCode
Total = pb.ScoreResponse.TextTotal


class Failed(grpc.RpcError):
    """An error as gRPC raises it; a server that is full says when to try again."""

    def __init__(self, code=Code.UNAVAILABLE, details="gone", full=False, own=False):
        self._code, self._details, self._trailing = code, details, ()
        if full or own:
            self._trailing = (("x-request-id", "1"),)
        if full:
            packed = Any()
            packed.Pack(RetryInfo(retry_delay=Duration(nanos=1)))
            status = Status(code=8, message=details, details=[packed])
            self._trailing += (("grpc-status-details-bin", status.SerializeToString()),)

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailing


FULL = Failed(Code.RESOURCE_EXHAUSTED, "all streams are in use", full=True)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make_queue(lines=(), addresses=1, retry_seconds=30.0, served=None, **options):
    queue = LineQueue("", addresses, retry_seconds, None, FirstContact(None), **options)
    queue.begin(served or pb.ListModelsResponse(models=[pb.ModelInfo(name="m")]), None)
    for line in lines:
        queue.add(line)
    return queue


def answer(batch, count=None, model_id="id"):
    texts = batch.request().texts[:count]
    batch.received(
        pb.ScoreResponse(totals=[Total(chars=len(text), logprob=-len(text)) for text in texts], model_id=model_id)
    )


def shown(queue):
    scores = []
    while (score := queue.next_score()) is not None:
        scores.append(score)
    return scores


def texts_of(queue):
    return [list(batch.request().texts) for batch in iter(queue.take, None)]


def test_lines_that_are_there_share_calls_and_one_that_comes_alone_has_its_own():
    queue = make_queue("abc")
    assert texts_of(queue) == [["a", "b", "c"]]
    queue.add("d")
    assert texts_of(queue) == [["d"]]
    for _ in range(LINES_AT_ONCE + 1):
        queue.add("e")
    assert [len(texts) for texts in texts_of(queue)] == [LINES_AT_ONCE, 1]


def test_long_lines_do_not_share_a_call():
    long = "x" * CHARS_AT_ONCE
    assert texts_of(make_queue(["a", long, "b", "c"])) == [["a"], [long], ["b", "c"]]


def test_empty_lines_and_what_is_not_text_need_no_call():
    queue = make_queue(["", "a", "", "b\ud800c", ""])
    (batch,) = iter(queue.take, None)
    answer(batch)
    scores = shown(queue)
    assert [score.line for score in scores] == [1, 2, 3, 4, 5]
    assert scores[0] == LineScore(1, "", 0, 0.0)
    assert scores[0].bits_per_symbol == 0
    assert scores[1].bits_per_symbol == 1 / math.log(2)
    assert scores[3].error == "half a surrogate pair at position 1, which is not text"
    assert math.isnan(scores[3].bits_per_symbol)


@given(
    lines=st.lists(st.sampled_from(["", "a", "bc", "d" * 1500]), max_size=80),
    order=st.randoms(use_true_random=False),
)
def test_scores_come_in_order_whatever_the_order_of_the_calls(lines, order):
    queue = make_queue(lines)
    queue.close()
    scores, running = [], []
    while not queue.is_complete:
        while (batch := queue.take()) is not None:
            running.append(batch)
        if running:
            batch = running.pop(order.randrange(len(running)))
            while batch.request() is not None:
                answer(batch, order.randint(1, 5), "")
                scores += shown(queue)
            batch.ended(None)
            queue.pause()
        scores += shown(queue)
    assert [(score.line, score.text, score.symbols) for score in scores] == [
        (number, line, len(line)) for number, line in enumerate(lines, 1)
    ]


def test_only_so_many_lines_are_read_ahead():
    queue = make_queue()
    count = 0
    while queue.has_room:
        queue.add("a")
        count += 1
    assert count == MOST_LINES
    answer(queue.take())
    assert not queue.has_room
    shown(queue)
    assert queue.has_room
    assert not make_queue(["x" * MOST_CHARS]).has_room
    assert make_queue().has_room


def test_a_call_that_broke_is_repeated_for_the_lines_without_a_score():
    queue = make_queue("abcd")
    batch = queue.take()
    answer(batch, 2)
    assert batch.ended(Failed()) >= 0
    assert list(batch.request().texts) == ["c", "d"]
    answer(batch)
    assert batch.request() is None
    assert [score.text for score in shown(queue)] == ["a", "b", "c", "d"]


def test_a_failure_comes_after_the_scores_before_it():
    queue = make_queue("a" * 40, retry_seconds=0)
    first, second = queue.take(), queue.take()
    with pytest.raises(ServerError) as caught:
        second.ended(Failed(Code.INTERNAL, "a bug", own=True))
    queue.fail(second.first, caught.value)
    assert queue.take() is None
    assert shown(queue) == []
    answer(first)
    for _ in range(LINES_AT_ONCE):
        assert queue.next_score()
    with pytest.raises(ServerError, match="a bug"):
        queue.next_score()


def test_what_the_iterable_raises_comes_in_its_place():
    queue = make_queue("a")
    queue.close(ValueError("no more"))
    answer(queue.take())
    assert queue.next_score().text == "a"
    with pytest.raises(ValueError, match="no more"):
        queue.next_score()


def test_calls_are_as_many_as_the_server_has_streams():
    served = pb.ListModelsResponse(models=[pb.ModelInfo(name="m")], max_streams=3)
    assert len(texts_of(make_queue("a" * 1000, served=served))) == 3
    assert len(texts_of(make_queue(["a" * 2000] * 1000))) == CALLS


def test_refused_calls_lower_the_number_and_complete_ones_raise_it():
    clock = Clock()
    queue = make_queue(["a" * 2000] * 100, clock=clock)
    batches = list(iter(queue.take, None))
    for batch in batches[:60]:
        assert batch.ended(FULL) >= 0
        assert batch.was_refused
        queue.pause()
    assert not queue.may_call  # four run, and were not refused
    answer(batches[-1])
    batches[-1].ended(None)
    queue.pause()
    assert queue.may_call
    for batch in batches[60:63]:
        answer(batch)
        batch.ended(None)
        queue.pause()
    for _ in range(4):
        batch = queue.take()
        answer(batch)
        batch.ended(None)
        queue.pause()
    assert len(list(iter(queue.take, None))) == 5


def test_a_server_that_stays_full_ends_it():
    clock = Clock()
    queue = make_queue("a", retry_seconds=10, clock=clock)
    batch = queue.take()
    clock.now = 9.9
    batch.ended(FULL)
    clock.now = 10.0
    with pytest.raises(ServerError, match="all streams are in use"):
        batch.ended(FULL)


def test_calls_begin_at_the_addresses_in_turn_but_not_at_one_that_failed():
    clock = Clock()
    queue = make_queue(["a" * 2000] * 100, addresses=3, clock=clock)
    assert {queue.take().address for _ in range(6)} == {0, 1, 2}
    batch = queue.take()
    lost = batch.address
    batch.ended(Failed())
    assert batch.address != lost
    assert lost not in {queue.take().address for _ in range(6)}
    clock.now = 2.0
    assert lost in {queue.take().address for _ in range(6)}


def test_servers_with_different_models_are_an_error():
    queue = make_queue(["a" * 2000] * 2)
    first, second = queue.take(), queue.take()
    answer(first, model_id="one")
    with pytest.raises(ServerError, match="they have different models") as caught:
        answer(second, model_id="two")
    assert caught.value.code is Code.DATA_LOSS


def test_an_answer_that_does_not_fit_is_an_error():
    with pytest.raises(ServerError, match="its version is too old"):
        make_queue("a").take().received(pb.ScoreResponse(total=pb.ScoreResponse.Total()))
    with pytest.raises(ServerError, match="more scores than lines"):
        make_queue("a").take().received(pb.ScoreResponse(totals=[Total(), Total()]))


def test_a_line_that_no_message_of_the_server_may_hold_has_an_error():
    queue = make_queue(["a" * 5000, "b"])
    batch = queue.take()
    batch.ended(Failed(Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", own=True))
    assert batch.request() is None
    (score,) = shown(queue)
    assert score.error.endswith("Received message larger than max (5 vs. 4)")


@pytest.mark.parametrize("line", [b"a", None, 3])
def test_lines_are_texts(line):
    with pytest.raises(TypeError, match="lines must be str"):
        make_queue([line])


def test_ends_count_where_the_model_has_some_unless_told_otherwise():
    served = pb.ListModelsResponse(models=[pb.ModelInfo(name="a"), pb.ModelInfo(name="b", end_symbols=["$"])])
    for model, include_end, expected in [("", None, False), ("b", None, True), ("b", False, False), ("a", True, True)]:
        queue = LineQueue(model, 1, 30.0, None, FirstContact(None))
        queue.begin(served, include_end)
        queue.add("x")
        assert queue.take().request().include_end is expected
