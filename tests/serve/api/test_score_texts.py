"""Many texts in one Score call: the totals of each alone, bit for bit, whatever else the server does."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from calls import refusal
from google.rpc.error_details_pb2 import BadRequest
from random_models import LETTERS, make_run, save_bundle
from servers import run_server, wait_until

from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import LONGEST, Vocabulary

SMALL = ("<unk>", "\n", " ", "a", "b", "c")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    gru = save_bundle(make_run(hidden=16), folder / "gru")
    save_bundle(make_run(SMALL, cell="lstm", hidden=12, layers=2), folder / "small")
    ends = Vocabulary(("<unk>", "^", "$", "!", "C", "l", "Cl"), LONGEST, "^", ("$", "!"))
    save_bundle(make_run(ends, hidden=12), folder / "ends")
    one_end = Vocabulary(("^", "$", "C", "l", "Cl"), LONGEST, "^", ("$",))
    save_bundle(make_run(one_end, hidden=12), folder / "end")
    names = ("gru", "small", "ends", "end")
    with (
        run_server(*(folder / name for name in names), "--max-score-chars", 3000) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = TextGenerationStub(channel)
        stub.model_id = gru.model_id
        yield stub


def totals(stub, texts, **request):
    messages = list(stub.Score(pb.ScoreRequest(texts=texts, **request), timeout=60))
    assert all(not message.logprobs and not message.HasField("total") for message in messages)
    assert messages[0].model_id
    assert not any(message.model_id for message in messages[1:])
    answers = [answer for message in messages for answer in message.totals]
    assert len(answers) == len(texts)
    return answers


def alone(stub, text, **request):
    *_, last = stub.Score(pb.ScoreRequest(text=text, **request), timeout=60)
    return last.total.chars, last.total.logprob


def random_texts(count, seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.choice([0, 1, 2, 30, 100, 101, 700]))) for _ in range(count)]


def test_each_total_has_the_bits_of_the_text_alone(served):
    assert totals(served, ["To be"])[0].chars == 5
    texts = random_texts(60, 1)
    stop = threading.Event()

    def company():
        while not stop.is_set():
            list(served.Generate(pb.GenerateRequest(max_chars=50, logprobs=2), timeout=60))

    with ThreadPoolExecutor(40) as pool:
        others = [pool.submit(company) for _ in range(3)]
        crowd = [pool.submit(totals, served, [text, *random_texts(3, seed)]) for seed, text in enumerate(texts)]
        found = [(answer.result()[0].chars, answer.result()[0].logprob) for answer in crowd]
        stop.set()
        for other in others:
            other.result()
    assert found == [alone(served, text) for text in texts]
    assert found == [(answer.chars, answer.logprob) for answer in totals(served, texts)]


def test_the_answer_names_the_model(served):
    assert next(served.Score(pb.ScoreRequest(texts=["a"]))).model_id == served.model_id


@pytest.mark.parametrize("request_", [{"model": "small"}, {"as_prompt": True}, {"model": "small", "as_prompt": True}])
def test_the_other_fields_hold_for_each_text(served, request_):
    texts = ["", "a", "ab c", "cab" * 50]
    assert [(answer.chars, answer.logprob) for answer in totals(served, texts, **request_)] == [
        alone(served, text, **request_) for text in texts
    ]


@pytest.mark.parametrize("model", ["ends", "end"])
def test_the_end_of_each_text_counts_if_asked_for(served, model):
    texts = ["", "CClC", "lClC" * 100]
    for include_end in (False, True):
        answers = totals(served, texts, model=model, include_end=include_end)
        assert [(answer.chars, answer.logprob) for answer in answers] == [
            alone(served, text, model=model, include_end=include_end) for text in texts
        ]
        assert [answer.chars for answer in answers] == [include_end, 3 + include_end, 201 + include_end]
    (answer,) = totals(served, ["CxC"], model="end")
    assert "position 1" in answer.error
    error, _ = refusal(served.Score(pb.ScoreRequest(texts=["a"], include_end=True)))
    assert error.details() == "include_end: model 'gru' has no end symbol"


def test_each_text_continues_the_stream_of_a_token(served):
    *_, last = served.Generate(pb.GenerateRequest(prompt="To be", max_chars=20))
    texts = ["or", " not", "or"]
    first, second, third = totals(served, texts, resume_token=last.resume_token)
    assert first == third
    for answer, text in ((first, "or"), (second, " not")):
        assert (answer.chars, answer.logprob) == alone(served, text, resume_token=last.resume_token)


def test_a_text_that_cannot_be_read_has_an_error_in_its_place(served):
    before, unknown, long, after = totals(served, ["To be", "or 漢 not", "a" * 3001, "To be"])
    assert unknown.error == "character '漢' (U+6F22) at position 3 is not in the model's vocabulary"
    assert long.error == "text has 3001 characters; the limit of this server is 3000"
    assert (unknown.chars, unknown.logprob, long.chars, long.logprob) == (0, 0, 0, 0)
    assert before == after
    assert not before.error
    assert not totals(served, ["a漢c"], model="small")[0].error  # <unk>


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        ({"text": "a"}, "text", "text and texts exclude each other"),
        ({"top_logprobs": 0}, "top_logprobs", "top_logprobs goes with text: of texts, only totals are returned"),
        ({"texts": ["a"] * 1025}, "texts", "there are 1025 texts; the limit is 1024"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(served, request_, field, message):
    error, details = refusal(served.Score(pb.ScoreRequest(**{"texts": ["a"], **request_})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details[BadRequest].field_violations[0].field == field
    assert error.details() == message


def test_a_call_that_is_left_frees_its_slot(served):
    call = served.Score(pb.ScoreRequest(texts=["a" * 3000] * 1000))
    next(call)
    call.cancel()
    wait_until(lambda: served.ListModels(pb.ListModelsRequest()).streams_running == 0)


def test_a_draining_server_sends_the_totals_that_it_has(tiny_folder):
    with run_server(tiny_folder, "--drain-seconds", 0.1) as server, grpc.insecure_channel(server.target) as channel:
        call = TextGenerationStub(channel).Score(pb.ScoreRequest(texts=["a" * 5000] * 1000), timeout=60)
        count = len(next(call).totals)
        server.process.terminate()
        messages = []
        with pytest.raises(grpc.RpcError) as caught:
            messages.extend(call)
    count += sum(len(message.totals) for message in messages)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert 0 < count < 1000
