"""Score: the log-probability of every character of a given text, alone and in company, in one call and over resumes."""

import asyncio
import io
import json
import math
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import grpc
import numpy as np
import psutil
import pytest
import torch
from calls import refusal
from google.rpc.error_details_pb2 import BadRequest
from random_models import LETTERS, make_run
from servers import ROOT, run_server, wait_until

from rill.cli import progress
from rill.cli.main import main
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.sync import Client
from rill.export.graphs.build import build_bundle
from rill.export.graphs.weights import weights_of
from rill.export.parity.compare import decode_feeds, session, zero_states
from rill.export.parity.reference import Int8
from rill.export.write import manifest_of, write_bundle
from rill.sampling import Sampling
from rill.serve.api.requests import CHECKED_AT_ONCE, GenerateParameters, spec_of
from rill.serve.api.score import Score, read
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.rows import BUFFER
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

KEY = bytes(range(32))
SMALL = ("<unk>", "\n", " ", "a", "b", "c")
RUNS = {
    "gru": make_run(hidden=16),
    "lstm": make_run(cell="lstm", hidden=16),
    "small": make_run(SMALL, hidden=12, layers=2),
    "ngrams": make_run(hidden=16, ngrams=4, ngram_rows=500),
}
MODELS = {"gru": "fp32", "lstm": "fp32", "ngrams": "fp32", "small": "fp32", "gru-int8": "int8", "lstm-int8": "int8"}


def random_text(count, seed=0, characters=LETTERS):
    return "".join(random.Random(seed).choices(characters, k=count))


def expected(name, text, before="\n"):
    """Return the log-probability of every character of `text` after `before`, by PyTorch in float64."""
    run = RUNS[name]
    ids = torch.tensor([run.vocabulary.encode(before + text)])
    with torch.no_grad():
        logits, _ = run.build().eval().double()(ids[:, :-1])
    logprobs = torch.log_softmax(logits[0, -len(text) :], dim=1)
    return logprobs.gather(1, ids[0, -len(text) :, None])[:, 0].numpy()


@dataclass
class Served:
    """Two servers with one key whose rounds differ in length; the second has `gru` only."""

    bundles: dict
    servers: list
    stubs: list

    def call(self, which=0, **request):
        return self.stubs[which].Score(pb.ScoreRequest(**request), timeout=60)

    def score(self, which=0, **request):
        """Return the log-probabilities, and the total."""
        return checked(list(self.call(which, **request)), len(request.get("text", "")))

    def generate(self, **request):
        return list(self.stubs[0].Generate(pb.GenerateRequest(**request), timeout=60))


def checked(messages, count):
    """Check that every character appears once, in order, and that the total follows from them."""
    logprobs = []
    for message in messages:
        assert message.position == len(logprobs)
        assert message.HasField("total") is (message is messages[-1])
        logprobs += message.logprobs
    assert len(logprobs) == count
    total = messages[-1].total
    assert total.chars == count
    assert total.logprob == pytest.approx(sum(logprobs), rel=1e-9)
    assert total.bits_per_char == pytest.approx(-total.logprob / max(count, 1) / math.log(2))
    assert total.perplexity == pytest.approx(math.exp(-total.logprob / max(count, 1)))
    return np.array(logprobs), total


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    (folder / "key").write_bytes(KEY)
    bundles = {}
    for name, precision in MODELS.items():
        bundle = bundles[name] = build_bundle(RUNS[name.removesuffix("-int8")], name, precision)
        write_bundle(bundle, manifest_of(bundle, {}, {}), folder / name)
    with ExitStack() as stack:
        servers, stubs = [], []
        for names, milliseconds in [(MODELS, 10), (["gru"], 0.3)]:
            arguments = [*(folder / name for name in names), "--round-milliseconds", milliseconds]
            server = stack.enter_context(run_server(*arguments, "--resume-key-file", folder / "key"))
            servers.append(server)
            stubs.append(TextGenerationStub(stack.enter_context(grpc.insecure_channel(server.target))))
        yield Served(bundles, servers, stubs)


# The numbers


@pytest.mark.long
def test_a_hundred_thousand_are_pytorchs(served):
    text = random_text(100_000)
    calls = {"gru": served.call(text=text), "lstm": served.call(model="lstm", text=text[:10_000])}
    for (name, call), count in zip(calls.items(), (100_000, 10_000), strict=True):
        logprobs, _ = checked(list(call), count)
        np.testing.assert_allclose(logprobs, expected(name, text[:count]), rtol=0, atol=1e-4)


def test_ngrams_continue_over_resumes(served):
    text, scores = random_text(900, 3), []
    total = None
    for part in (text[:1], text[1:2], text[2:500], "", text[500:]):
        request = {"resume_token": total.resume_token} if total else {"model": "ngrams"}
        logprobs, total = served.score(text=part, **request)
        scores.extend(logprobs)
    np.testing.assert_allclose(scores, expected("ngrams", text), rtol=0, atol=1e-4)


def by_the_graph(bundle, text):
    """int8: the result of the serving graph in one call for the whole text."""
    graph, ids = session(bundle.graphs["decode_logprobs"]), np.array(bundle.vocabulary.encode("\n" + text))
    feeds = decode_feeds(graph, ids[:1], zero_states(bundle, 1), np.zeros((len(text), 1), np.float32), Sampling())
    feeds["forced"] = ids[1:, None]
    return graph.run(["logprobs"], feeds)[0][:, 0]


def by_emulation(bundle, run, text):
    """int8: the result of NumPy for each step, from the states of the graph."""
    graph, ids = session(bundle.graphs["decode"]), np.array(bundle.vocabulary.encode("\n" + text))
    reference, before, logprobs = Int8(run.model, weights_of(run)), zero_states(bundle, 1), []
    for token, following in pairwise(ids):
        feeds = decode_feeds(graph, np.array([token]), before, np.zeros((1, 1), np.float32), Sampling())
        after = dict(zip(before, graph.run([f"next_{name}" for name in before], feeds), strict=True))
        logits = reference.step(np.array([token]), before, after)["logits"][0, 0].astype(np.float64)
        logprobs.append(logits[following] - np.logaddexp.reduce(logits))
        before = after
    return np.array(logprobs)


@pytest.mark.parametrize("name", ["gru-int8", "lstm-int8"])
def test_int8_is_the_arithmetic_of_int8(served, name):
    text = random_text(4000)
    logprobs, _ = served.score(model=name, text=text)
    np.testing.assert_allclose(logprobs, by_the_graph(served.bundles[name], text), rtol=0, atol=1e-5)
    few = by_emulation(served.bundles[name], RUNS[name.removesuffix("-int8")], text[:300])
    np.testing.assert_allclose(logprobs[:300], few, rtol=0, atol=1e-4)


def test_the_same_alone_in_a_crowd_and_in_rounds_of_any_length(served):
    """Texts of all lengths, beside streams with and without log-probabilities."""
    texts = {seed: random_text(1 + 5 * seed**2, seed) for seed in range(20)}
    calls = [(served.call(seed % 2, text=text), text) for seed, text in texts.items()]
    others = [
        served.stubs[seed % 2].Generate(
            pb.GenerateRequest(max_chars=300, sampling=pb.Sampling(seed=seed), logprobs=3 if seed % 4 < 2 else None)
        )
        for seed in range(20)
    ]
    crowded = [checked(list(call), len(text))[0] for call, text in calls]
    for call in others:
        assert sum(len(message.text) for message in call) == 300
    for logprobs, text in zip(crowded, texts.values(), strict=True):
        np.testing.assert_allclose(logprobs, expected("gru", text), rtol=0, atol=1e-4)
    for which in (0, 1):
        alone, _ = served.score(which, text=texts[19])
        np.testing.assert_allclose(alone, crowded[19], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["a", "é", "漢", "a漢😀 b漢\n", "<unk>", random_text(500, 3, "abc xyz漢\n")])
def test_unknown_characters_are_read_as_unk(served, text):
    logprobs, _ = served.score(model="small", text=text)
    np.testing.assert_allclose(logprobs, expected("small", text), rtol=0, atol=1e-4)


# The stream that has read the text


def texts_from(served, requests):
    """Return how the stream of each request continues, which must be the same for all."""
    answers = [served.generate(max_chars=200, **request) for request in requests]
    return {("".join(m.text for m in answer), answer[0].position, answer[0].seed) for answer in answers}


@pytest.mark.parametrize("name", ["gru", "lstm-int8"])
def test_its_token_is_the_stream_that_has_read_the_text(served, name):
    text = random_text(700, 1)
    _, total = served.score(model=name, text=text)
    requests = [{"resume_token": total.resume_token}, {"prompt": "\n" + text}]
    for request in requests:
        request |= {"model": name, "sampling": pb.Sampling(seed=5, temperature=0.8)}
    assert len(texts_from(served, requests)) == 1


TOKENS = [
    {},
    {"stop": ["Q", "xyzx"], "include_stop": True},
    {"sampling": pb.Sampling(seed=3, temperature=0.8, top_k=9, top_p=0.9, min_p=0.1, logit_bias={"e": -5, "t": 1})},
]


@pytest.mark.parametrize("before", TOKENS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 600])
def test_a_text_beside_a_token_continues_its_stream(served, before, count):
    """As with a prompt: seed, parameters, stops and position stay."""
    first = served.generate(prompt="To be", max_chars=40, **before)
    token, made = first[-1].resume_token, "".join(message.text for message in first)
    text = random_text(count, 2)
    logprobs, total = served.score(resume_token=token, text=text)
    if text:
        np.testing.assert_allclose(logprobs, expected("gru", text, "To be" + made), rtol=0, atol=1e-4)
    requests = [{"resume_token": total.resume_token}, {"resume_token": token, "prompt": text}]
    assert len(texts_from(served, requests)) == 1


def test_a_text_in_parts(served):
    """Each part continues the token of the previous one, on either server."""
    text, chance, token, parts = random_text(3000, 4), random.Random(0), b"", []
    cuts = [0, *sorted(chance.sample(range(3000), 12)), 3000, 3000]
    for start, end in pairwise(cuts):
        logprobs, total = served.score(chance.randrange(2), resume_token=token, text=text[start:end])
        parts.append(logprobs)
        token = total.resume_token
    np.testing.assert_allclose(np.concatenate(parts), expected("gru", text), rtol=0, atol=1e-4)


def test_no_text(served):
    (message,) = served.call()
    assert (message.total.chars, message.total.logprob, message.total.perplexity) == (0, 0, 1)
    sampling = pb.Sampling(seed=1)
    requests = [{"resume_token": message.total.resume_token, "sampling": sampling}, {"sampling": sampling}]
    assert len(texts_from(served, requests)) == 1


def test_totals_that_no_number_can_hold():
    score = Score()
    score.add(np.array([-1e30, -5], np.float32))
    assert (score.chars, score.perplexity) == (2, math.inf)
    assert score.bits_per_char == pytest.approx(5e29 / math.log(2))


# What is refused


def running(server):
    with server.client() as client:
        response = client.models()
        return response.streams_running + response.streams_waiting


@pytest.fixture(scope="module")
def limited(tiny_folder):
    """One stream at a time, no waiting line, texts of up to 200,000 characters."""
    arguments = ("--max-streams", 1, "--max-waiting", 0, "--max-score-chars", 200_000, "--max-prompt", 10)
    with run_server(tiny_folder, *arguments) as server, grpc.insecure_channel(server.target) as channel:
        yield server, TextGenerationStub(channel)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc漢", "text: character '漢' (U+6F22) at position 3"),
        ("a" * (2 * CHECKED_AT_ONCE + 7) + "漢" + "a漢", f"(U+6F22) at position {2 * CHECKED_AT_ONCE + 7} is not in"),
        ("a" * 200_001, "text has 200001 characters; the limit of this server is 200000"),
        ("😀" * 200_001, "text has 200001 characters"),
    ],
    ids=["unknown", "far", "long", "wide"],
)
def test_a_text_that_cannot_be_scored_is_refused_before_any_work(limited, text, message):
    """If there is a slot for it; without one, the text is not even checked."""
    server, stub = limited
    wait_until(lambda: running(server) == 0)
    error, details = refusal(stub.Score(pb.ScoreRequest(text=text)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.details()
    assert [violation.field for violation in details[BadRequest].field_violations] == ["text"]
    busy = stub.Generate(pb.GenerateRequest())
    next(busy)
    error, _ = refusal(stub.Score(pb.ScoreRequest(text=text)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    busy.cancel()


def test_tokens_and_models_are_refused_as_by_generate(served):
    token = served.generate(model="lstm", max_chars=1)[-1].resume_token
    for request, code in [
        ({"resume_token": token[:-1] + bytes([token[-1] ^ 1])}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"resume_token": token, "model": "gru"}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"model": "nope"}, grpc.StatusCode.NOT_FOUND),
    ]:
        error, _ = refusal(served.call(text="abc", **request))
        assert error.code() is code


# Long texts


def test_ten_megabytes_fit_and_are_not_held_as_numbers(served):
    """Ids alone would take 80 MB."""
    process = psutil.Process(served.servers[0].process.pid)
    before = process.memory_info().rss
    call = served.call(text="abcdefghij" * 1_000_000)
    for message, _ in zip(call, range(3), strict=False):
        assert len(message.logprobs) <= BUFFER
    assert process.memory_info().rss - before < 70e6
    call.cancel()
    wait_until(lambda: running(served.servers[0]) == 0)


def test_deadlines_and_cancellation_free_the_slot(limited):
    server, stub = limited
    wait_until(lambda: running(server) == 0)
    text = "a" * 200_000
    error, _ = refusal(stub.Score(pb.ScoreRequest(text=text), timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: running(server) == 0)
    call = stub.Score(pb.ScoreRequest(text=text))
    next(call)
    call.cancel()
    wait_until(lambda: running(server) == 0)
    assert len(next(stub.Score(pb.ScoreRequest(text="abc"))).logprobs) == 1  # the first goes out at once


def test_other_streams_continue_during_a_long_text(served):
    call = served.call(text="a" * 2_000_000)
    next(call)
    texts = [served.generate(max_chars=1000, logprobs=logprobs) for logprobs in (None, 2)]
    assert [sum(len(message.text) for message in messages) for messages in texts] == [1000, 1000]
    assert served.score(text="abc" * 300)[1].chars == 900
    assert running(served.servers[0]) == 1  # it is not over
    call.cancel()


@pytest.fixture
async def model(tiny):
    made = Model(tiny, Decoder(tiny, CPU), 4, 4, 0.010)
    yield made
    made.engine.stop()


async def test_a_reader_that_stops_costs_no_compute(model):
    spec = await spec_of(GenerateParameters(), None, model, ServerConfig())
    text = "a" * (BUFFER + 5000)
    goes_on, got = asyncio.Event(), []

    async def write(logprobs):
        got.append(logprobs.chosen)
        await goes_on.wait()

    async with model.slot() as slot:
        reading = asyncio.create_task(read(model, slot, spec, text, write))
        while not got or model.engine.parked() == 0:
            await asyncio.sleep(0.01)
        assert model.engine._rows.table["generated"][0] == BUFFER
        goes_on.set()
        snapshot = await reading
    assert sum(map(len, got)) == len(text)
    assert (snapshot.position, snapshot.token) == (0, model.bundle.vocabulary.id_of("a"))
    assert model.slots.running == 0


def test_a_draining_server_ends_what_it_can(tiny_folder):
    with run_server(tiny_folder, "--drain-seconds", 2) as server, grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)
        short = stub.Score(pb.ScoreRequest(text="a" * 3000))
        long = stub.Score(pb.ScoreRequest(text="a" * 3_000_000, as_prompt=True))
        next(short)
        next(long)
        server.process.send_signal(signal.SIGTERM)
        total = list(short)[-1].total
        with pytest.raises(grpc.RpcError) as caught:
            list(long)
        assert total.chars == 3000
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "of 3000000 characters" in caught.value.details()
        assert server.process.wait(timeout=20) == 0


# Clients and the command


async def test_clients(served):
    target, text = served.servers[0].target, random_text(900, 6)
    with Client(f"127.0.0.1:1,{target}") as client:
        logprobs, total = checked(list(client.score(text, model="lstm")), 900)
        np.testing.assert_allclose(logprobs, expected("lstm", text), rtol=0, atol=1e-4)
        continued, _ = checked(list(client.score("abc", model="lstm", resume_token=total.resume_token)), 3)
        np.testing.assert_allclose(continued, expected("lstm", "abc", "\n" + text), rtol=0, atol=1e-4)
        with pytest.raises(ServerError, match="position 1"):
            list(client.score("a漢"))
    with Client("127.0.0.1:1", retry_seconds=0) as client, pytest.raises(ServerError) as caught:
        next(client.score("a"))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    async with AsyncClient(f"127.0.0.1:1,{target}") as client:
        again, _ = checked([message async for message in client.score(text, model="lstm")], 900)
        np.testing.assert_allclose(again, logprobs, rtol=0, atol=1e-5)
        with pytest.raises(ServerError, match="position 1"):
            [message async for message in client.score("a漢")]


@pytest.fixture
def rill(served, capsys):
    def run(*arguments):
        """Return exit status, lines of output, errors."""
        try:
            status = main(["score", *map(str, arguments), "--target", served.servers[0].target])
        except SystemExit as exited:
            status = exited.code
        out, errors = capsys.readouterr()
        return status, out.splitlines(), errors

    return run


def test_rill_score(rill, tmp_path):
    file, text = tmp_path / "text.txt", "To be,\nor not to bé\n"
    file.write_text(text)
    nats = expected("gru", text)
    assert rill(file) == (
        0,
        [
            f"{len(text)} characters: {nats.sum():,.3f} nats, {-nats.mean() / math.log(2):.4f} bits per character, "
            f"perplexity {math.exp(-nats.mean()):.4f}"
        ],
        "",
    )
    status, lines, _ = rill(file, "--per-char", "--model", "gru")
    assert status == 0
    assert lines[-1] == rill(file)[1][0]
    rows = [line.split("\t") for line in lines[:-1]]
    assert [(int(at), json.loads(character)) for at, character, _ in rows] == list(enumerate(text))
    np.testing.assert_allclose([float(logprob) for *_, logprob in rows], nats, rtol=0, atol=1e-4)


def test_rill_score_json(rill, tmp_path):
    (tmp_path / "text.txt").write_text("To be")
    nats = expected("gru", "To be")
    _, (line,), _ = rill(tmp_path / "text.txt", "--json")
    total = json.loads(line)
    assert total.keys() == {"chars", "logprob", "bits_per_char", "perplexity", "resume_token"}
    assert (total["chars"], total["logprob"]) == (5, pytest.approx(nats.sum(), abs=1e-4))
    _, lines, _ = rill(tmp_path / "text.txt", "--json", "--per-char")
    messages = [json.loads(line) for line in lines[:-1]]
    logprobs = [logprob for message in messages for logprob in message["logprobs"]]
    np.testing.assert_allclose(logprobs, nats, rtol=0, atol=1e-4)
    assert messages[0]["position"] == 0


def test_a_file_is_read_as_a_corpus_is(rill, tmp_path):
    (tmp_path / "plain").write_bytes(b"To be\nor\nnot\n")
    (tmp_path / "other").write_bytes(b"\xef\xbb\xbfTo be\r\nor\rnot\r\n")
    assert rill(tmp_path / "plain")[1] == rill(tmp_path / "other")[1] != []


def test_standard_input(served):
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "rill",
        "score",
        "-",
        "--target",
        served.servers[0].target,
    ]
    done = subprocess.run(command, cwd=ROOT, input="To bé", capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout[:14], done.stderr) == ("5 characters: ", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "cannot read {}: No such file or directory"),
        (".", "cannot read {}: Is a directory"),
        ("binary", "{} is not UTF-8: byte 0xff at offset 2"),
    ],
)
def test_what_cannot_be_read_is_refused(rill, tmp_path, name, message):
    (tmp_path / "binary").write_bytes(b"To\xff")
    status, lines, errors = rill(tmp_path / name)
    assert (status, lines) == (2, [])
    assert message.format(tmp_path / name) in errors


def test_a_text_of_the_wrong_characters(rill, tmp_path):
    (tmp_path / "text").write_text("To 漢")
    assert rill(tmp_path / "text") == (
        1,
        [],
        "error: text: character '漢' (U+6F22) at position 3 is not in the model's vocabulary (INVALID_ARGUMENT)\n",
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_bar_where_it_takes_long(rill, tmp_path, monkeypatch, kind):
    (tmp_path / "text").write_text("a" * 5000)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr", kind())
    status, (line,), _ = rill(tmp_path / "text")
    drawn = sys.stderr.getvalue()
    assert (status, line[:16]) == (0, "5,000 characters")
    assert (" of 5,000 characters " in drawn) is (kind is Terminal)
    assert drawn.endswith("\x1b[2K") is (kind is Terminal)
