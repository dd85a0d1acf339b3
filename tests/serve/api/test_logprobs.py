"""Log-probabilities: those of the model itself, one per character, however it was chosen and sent."""

import asyncio
import tracemalloc
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from calls import check_messages, joined, refusal
from google.rpc.error_details_pb2 import BadRequest
from random_models import make_run, save_bundle
from reference_texts import continuation
from servers import run_server

from rill.serve.api.logprobs import LogprobEncoder
from rill.serve.api.responses import event_of
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.api.service import TextGeneration
from rill.serve.config import ServerConfig
from rill.serve.engine.decoder import Decoder
from rill.serve.engine.devices import CPU
from rill.serve.engine.types import Logprobs
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import Vocabulary

INF = float("inf")
SMALL = ("<unk>", "\n", " ", "a", "b", "c")


@dataclass
class Served:
    """A server with a large and a small vocabulary."""

    runs: dict
    bundles: dict
    stub: TextGenerationStub

    def generate(self, **request):
        return list(self.stub.Generate(pb.GenerateRequest(**request), timeout=60))

    def expected(self, name, read, text):
        """Return the log-probabilities of every symbol at each character of `text`, [characters, symbols]."""
        run = self.runs[name]
        ids = torch.tensor([run.vocabulary.encode((read or "\n") + text)])
        with torch.no_grad():
            logits, _ = run.build().eval()(ids[:, :-1])
        return torch.log_softmax(logits[0, -len(text) :].double(), dim=1).numpy()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logprobs")
    runs = {"large": make_run(layers=2, hidden=24), "small": make_run(SMALL, cell="lstm", hidden=12)}
    bundles = {name: save_bundle(run, folder / name) for name, run in runs.items()}
    with ExitStack() as stack:
        server = stack.enter_context(run_server(*(folder / name for name in runs)))
        channel = stack.enter_context(grpc.insecure_channel(server.target))
        yield Served(runs, bundles, TextGenerationStub(channel))


def check(messages, expected, symbols, count):
    """Check that every message has the right entries for its text; `expected` [characters, symbols]."""
    at = 0
    unknown = symbols.index("<unk>") if "<unk>" in symbols else None
    for message in messages:
        assert [entry.character for entry in message.logprobs] == list(message.text)
        for entry in message.logprobs:
            row = expected[at]
            assert entry.logprob == pytest.approx(row[symbols.index(entry.character)], abs=1e-4)
            others = [other.character for other in entry.alternatives]
            values = [other.logprob for other in entry.alternatives]
            assert len(others) == len(set(others)) == min(count, len(symbols) - (unknown is not None))
            assert "<unk>" not in others
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx([row[symbols.index(other)] for other in others], abs=1e-4)
            best = np.delete(row, unknown) if unknown is not None else row
            assert values == pytest.approx(-np.sort(-best)[: len(values)], abs=1e-4)
            at += 1
    assert at == len(expected)


PARAMETERS = [
    {},
    {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "logit_bias": {"a": -INF, "b": 3.0}},
    {"temperature": 0.0},
    {"temperature": 1.7, "min_p": 0.02},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize(("name", "count"), [("large", 0), ("large", 3), ("large", 20), ("small", 20), ("small", 5)])
def test_log_probabilities_are_those_of_the_model(served, name, count, parameters):
    sampling = pb.Sampling(seed=6, **parameters)
    messages = served.generate(model=name, prompt="ab", max_chars=200, sampling=sampling, logprobs=count)
    text = joined(messages)
    assert text == continuation(served.bundles[name], "ab", 6, 0, 200, **parameters)
    check(messages, served.expected(name, "ab", text), served.bundles[name].vocabulary.symbols, count)
    plain = served.generate(model=name, prompt="ab", max_chars=200, sampling=sampling)
    assert joined(plain) == text
    assert not any(message.logprobs for message in plain)


def test_without_a_prompt(served):
    messages = served.generate(max_chars=50, logprobs=2, sampling=pb.Sampling(seed=1))
    text = joined(messages)
    assert text == continuation(served.bundles["large"], "", 1, 0, 50)
    check(messages, served.expected("large", "", text), served.bundles["large"].vocabulary.symbols, 2)


@pytest.mark.parametrize("every", [0, 1, 6])
@pytest.mark.parametrize("include", [False, True], ids=["before", "after"])
def test_with_stops_that_hold_text_back(served, every, include):
    bundle = served.bundles["large"]
    text = continuation(bundle, "To be", 6, 0, 300)
    stops = [text[start : start + 30] + "Q" for start in range(10, 150, 20)] + [text[200:210]]
    messages = served.generate(
        prompt="To be",
        stop=stops,
        include_stop=include,
        logprobs=2,
        resume_every=every,
        sampling=pb.Sampling(seed=6),
    )
    check_messages(messages, 0, every)
    assert messages[-1].finish_reason == pb.FINISH_REASON_STOP
    assert joined(messages) == text[: 210 if include else 200]
    check(messages, served.expected("large", "To be", joined(messages)), bundle.vocabulary.symbols, 2)


def test_across_resumes(served):
    """Text that was held back and sent at the limit has log-probabilities as well."""
    bundle = served.bundles["large"]
    text = continuation(bundle, "To be", 6, 0, 200)
    got, request = [], {"prompt": "To be", "stop": [text[5:60] + "Q"], "sampling": pb.Sampling(seed=6)}
    while len(joined(got)) < 200:
        messages = served.generate(max_chars=20, logprobs=3, resume_every=7, **request)
        got += messages
        request = {"resume_token": messages[-1].resume_token}
    assert joined(got) == text
    check(got, served.expected("large", "To be", text), bundle.vocabulary.symbols, 3)
    # The token does not hold the option: a call that does not ask for them gets none.
    messages = served.generate(max_chars=20, **request)
    assert not any(message.logprobs for message in messages)


def test_in_company(served):
    """Streams that ask for different numbers, with and without filters, side by side."""
    calls = []
    for seed in range(30):
        count, parameters = [None, 0, 3, 20][seed % 4], PARAMETERS[seed % 3]
        sampling = pb.Sampling(seed=seed, **parameters)
        request = pb.GenerateRequest(prompt="To be", max_chars=150, logprobs=count, sampling=sampling)
        calls.append((served.stub.Generate(request), seed, count, parameters))
    bundle = served.bundles["large"]
    for call, seed, count, parameters in calls:
        messages = list(call)
        text = joined(messages)
        assert text == continuation(bundle, "To be", seed, 0, 150, **parameters)
        if count is None:
            assert not any(message.logprobs for message in messages)
        else:
            check(messages, served.expected("large", "To be", text), bundle.vocabulary.symbols, count)


@pytest.mark.parametrize("count", [21, 2**32 - 1])
def test_more_than_20_are_refused(served, count):
    error, details = refusal(served.stub.Generate(pb.GenerateRequest(logprobs=count)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in details[BadRequest].field_violations] == ["logprobs"]
    assert "20" in error.details()


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_the_encoding_is_protobufs(count):
    """Symbols of one to four bytes, entries longer than 127 bytes, `<unk>` left out."""
    symbols = ("<unk>", "\n", "a", "é", "漢", "😀", *"bcdefghijklmnopqrstuvwx")
    draw = np.random.default_rng(count)
    text = "".join(draw.choice(symbols[1:], 70))
    logprobs = Logprobs(
        draw.normal(size=70).astype(np.float32),
        np.stack([draw.permutation(len(symbols))[:20] for _ in text]),
        np.concatenate([np.zeros((1, 20)), draw.normal(size=(69, 20))]).astype(np.float32),
    )
    expected = pb.GenerateResponse(
        logprobs=[
            pb.CharLogprob(
                character=character,
                logprob=logprobs.chosen[at],
                alternatives=[
                    pb.CharLogprob.Alternative(character=symbols[token], logprob=value)
                    for token, value in zip(logprobs.tokens[at, :count], logprobs.values[at, :count], strict=True)
                    if token
                ],
            )
            for at, character in enumerate(text)
        ]
    )
    encoded = LogprobEncoder(Vocabulary(symbols)).encode(text, logprobs, count)
    assert pb.GenerateResponse.FromString(encoded) == expected


def test_messages_with_log_probabilities_are_short(served):
    """They take long to write, while other calls wait."""
    messages = list(served.stub.Generate(pb.GenerateRequest(max_chars=2000, logprobs=20)))
    assert sum(len(message.text) for message in messages) == 2000
    assert max(len(message.logprobs) for message in messages) <= 64


def test_an_interaction_gives_the_same(served):
    sampling, asked = pb.Sampling(seed=6), {"max_chars": 150, "logprobs": 20}
    first, *others = (
        pb.InteractRequest(open=pb.InteractRequest.Open(sampling=sampling)),
        pb.InteractRequest(feed="ab"),
        pb.InteractRequest(generate=pb.InteractRequest.Generate(**asked)),
    )
    events = served.stub.Interact(iter([first, *others]), timeout=60)
    outputs = [event.output for event in events if event.WhichOneof("event") == "output"]
    expected = served.generate(prompt="\nab", sampling=sampling, **asked)
    assert joined(outputs) == joined(expected)
    assert [entry for message in outputs for entry in message.logprobs] == [
        entry for message in expected for entry in message.logprobs
    ]
    assert outputs[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert outputs[-1].usage.generated_chars == 150


@pytest.mark.parametrize("size", [0, 127, 128, 2**14, 2**21 + 5])
def test_an_event_of_bytes_is_that_of_the_message(size):
    output = pb.GenerateResponse(text="a" * size, position=7)
    event = pb.InteractResponse(output=output)
    assert event_of(output) == event
    assert pb.InteractResponse.FromString(event_of(output.SerializeToString())) == event


STOPPED, MOST = 8, 150_000  # readers, and bytes that each may cost in Python's and NumPy's memory


@pytest.mark.parametrize("method", ["Generate", "Score"])
async def test_a_reader_that_stops_holds_little(tiny, method):
    """The connection holds as much again. As objects, the message being sent would take 90 KB more."""
    model = Model(tiny, Decoder(tiny, CPU), STOPPED, 0, 0.010)
    service = TextGeneration(SimpleNamespace(default=model, all=[model]), ResumeTokens([bytes(32)], 0), ServerConfig())
    written = []

    async def write(message):
        written.append(message)
        if len(message) > 1000:  # not the first one, of one character
            await asyncio.Event().wait()

    context = SimpleNamespace(
        write=write, invocation_metadata=tuple, set_trailing_metadata=lambda _: None, time_remaining=lambda: None
    )
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        request = {
            "Generate": pb.GenerateRequest(logprobs=20),
            "Score": pb.ScoreRequest(text="a" * 10_000, top_logprobs=20),
        }[method]
        calls = [asyncio.create_task(getattr(service, method)(request, context)) for _ in range(STOPPED)]
        async with asyncio.timeout(20):
            # The text of a parked stream was generated, but perhaps not delivered or written yet.
            while (
                len(written) < 2 * STOPPED
                or model.parked < STOPPED
                or tracemalloc.get_traced_memory()[0] - before > STOPPED * MOST
            ):
                await asyncio.sleep(0.02)
        assert len(written) == 2 * STOPPED
        assert {type(message) for message in written} == {bytes}
        assert max(map(len, written)) < 20_000
    finally:
        tracemalloc.stop()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await model.wait_until_idle()
        model.engine.stop()
