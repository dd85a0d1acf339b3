"""Score with `as_prompt`, which reads a text as Generate reads a prompt, and with `top_logprobs`."""

import math
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import torch
from calls import refusal
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import make_run
from servers import run_server

from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

SMALL = ("<unk>", "\n", " ", "a", "b", "c")
RUNS = {"gru": make_run(hidden=16, layers=2), "small": make_run(SMALL, cell="lstm", hidden=12)}
MODELS = {"gru": "fp32", "gru-int8": "int8", "small": "fp32"}
TEXTS = {"gru": "To be,\nor not to be", "gru-int8": "\nTo be, or not", "small": "ab c漢\n😀a"}


def distributions(name, text):
    """Return the log-probabilities of all symbols for each character of `text` but the first, by PyTorch in float64."""
    run = RUNS[name.removesuffix("-int8")]
    ids = torch.tensor([run.vocabulary.encode(text)])
    with torch.no_grad():
        logits, _ = run.build().eval().double()(ids[:, :-1])
    return run.vocabulary, ids[0, 1:].tolist(), torch.log_softmax(logits[0], dim=1).numpy()


@dataclass
class Served:
    """A server with the models, and its answers."""

    channel: grpc.Channel
    stub: TextGenerationStub

    def score(self, **request):
        """Return the entries of `logprobs`, those of `top`, and the total."""
        logprobs, top = [], []
        for message in (messages := list(self.stub.Score(pb.ScoreRequest(**request), timeout=60))):
            assert message.position == len(logprobs)
            assert len(message.top) == (len(message.logprobs) if "top_logprobs" in request else 0)
            logprobs += message.logprobs
            top += message.top
        assert len(logprobs) == len(request.get("text", ""))
        return np.array(logprobs, np.float32), top, messages[-1].total

    def generated(self, **request):
        """Return the text, the position and the log-probabilities of a generation, all of which seeds decide."""
        messages = list(self.stub.Generate(pb.GenerateRequest(logprobs=3, max_chars=12, **request), timeout=60))
        entries = [entry.SerializeToString() for message in messages for entry in message.logprobs]
        return "".join(message.text for message in messages), messages[0].position, messages[0].seed, entries


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    for name, precision in MODELS.items():
        bundle = build_bundle(RUNS[name.removesuffix("-int8")], name, precision)
        write_bundle(bundle, manifest_of(bundle, {}, {}), folder / name)
    with ExitStack() as stack:
        server = stack.enter_context(run_server(*(folder / name for name in MODELS)))
        channel = stack.enter_context(grpc.insecure_channel(server.target))
        yield Served(channel, TextGenerationStub(channel))


# The text as a prompt


@pytest.mark.parametrize("name", MODELS)
def test_its_token_generates_what_the_prompt_does(served, name):
    """After every prefix of a text, the empty one included: text, position and log-probabilities, to the last bit."""
    samplings = (pb.Sampling(seed=7), pb.Sampling(seed=2**64 - 1, temperature=0.7, top_k=4), pb.Sampling(temperature=0))
    for end in range(len(TEXTS[name]) + 1):
        text, sampling = TEXTS[name][:end], samplings[end % 3]
        if not sampling.HasField("seed"):
            sampling.seed = end
        _, _, total = served.score(model=name, text=text, as_prompt=True, **({"top_logprobs": 2} if end % 2 else {}))
        # A stop that would have begun in the prompt: only what is generated counts.
        asked = {"model": name, "sampling": sampling, "stop": [text[-1:] + "a", "zz"]}
        continued = served.generated(resume_token=total.resume_token, **asked)
        assert continued == served.generated(prompt=text, **asked)


@pytest.mark.parametrize("name", MODELS)
def test_all_but_its_first_character_have_log_probabilities(served, name):
    text = TEXTS[name] * 20
    logprobs, _, total = served.score(model=name, text=text, as_prompt=True)
    _, ids, expected = distributions(name, text)
    assert math.isnan(logprobs[0])
    tolerance = 0.2 if name.endswith("int8") else 1e-4
    np.testing.assert_allclose(logprobs[1:], expected[range(len(ids)), ids], rtol=0, atol=tolerance)
    assert total.chars == len(text) - 1
    assert total.logprob == pytest.approx(logprobs[1:].sum(dtype=np.float64), rel=1e-9)
    assert total.bits_per_char == pytest.approx(-total.logprob / total.chars / math.log(2))
    assert total.perplexity == pytest.approx(math.exp(-total.logprob / total.chars))


def test_no_text_and_one_character(served):
    logprobs, _, total = served.score(as_prompt=True, top_logprobs=3)
    assert (len(logprobs), total.chars, total.logprob, total.perplexity) == (0, 0, 0, 1)
    logprobs, (entry,), total = served.score(text="é", as_prompt=True, top_logprobs=3)
    assert np.isnan(logprobs).tolist() == [True]
    assert (entry.character, math.isnan(entry.logprob), len(entry.alternatives)) == ("é", True, 0)
    assert (total.chars, total.logprob, total.bits_per_char, total.perplexity) == (0, 0, 0, 1)


@settings(max_examples=25)
@given(st.text("To be,\n", max_size=60), st.integers(0, 60))
def test_a_prompt_in_two_parts(served, text, cut):
    """A text after a token follows the token's state, and every character has a log-probability."""
    whole, whole_top, _ = served.score(text=text, as_prompt=True, top_logprobs=2)
    first, first_top, total = served.score(text=text[:cut], as_prompt=True, top_logprobs=2)
    token, rest = total.resume_token, text[cut:]
    for as_prompt in (False, True):
        second, second_top, end = served.score(text=rest, as_prompt=as_prompt, top_logprobs=2, resume_token=token)
        assert end.chars == len(rest)
        assert not np.isnan(second).any()
        if text[:cut]:  # else the token is that of an empty prompt, which has read "\n"
            assert np.concatenate([first, second]).tobytes() == whole.tobytes()
            shown = [entry.SerializeToString() for entry in (*first_top, *second_top)]
            assert shown == [entry.SerializeToString() for entry in whole_top]


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_begins_with_the_start_symbol_is_scored_like_its_rest(served, name):
    text = TEXTS[name] * 30
    plain, _, expected = served.score(model=name, text=text)
    logprobs, _, total = served.score(model=name, text="\n" + text, as_prompt=True)
    assert logprobs[1:].tobytes() == plain.tobytes()
    assert total.chars == expected.chars
    assert total.logprob == pytest.approx(expected.logprob, rel=1e-12)


def test_after_the_token_of_a_stream(served):
    """The seed, the parameters and the stops of the token stay, as beside a prompt."""
    first = list(
        served.stub.Generate(pb.GenerateRequest(prompt="To", max_chars=9, stop=["Qq"], sampling=pb.Sampling(seed=3)))
    )
    token = first[-1].resume_token
    for text in ("", "b", " be or"):
        plain, _, total = served.score(text=text, resume_token=token)
        logprobs, _, as_prompt = served.score(text=text, resume_token=token, as_prompt=True)
        assert logprobs.tobytes() == plain.tobytes()
        assert as_prompt.chars == len(text)
        expected = served.generated(resume_token=token, prompt=text)
        assert served.generated(resume_token=as_prompt.resume_token) == expected
        assert served.generated(resume_token=total.resume_token) == expected


# Alternatives


@pytest.mark.parametrize("as_prompt", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
@pytest.mark.parametrize("name", MODELS)
def test_alternatives_are_the_most_probable_characters(served, name, count, as_prompt):
    text = TEXTS[name]
    logprobs, top, _ = served.score(model=name, text=text, as_prompt=as_prompt, top_logprobs=count)
    plain, _, _ = served.score(model=name, text=text, as_prompt=as_prompt)
    assert logprobs.tobytes() == plain.tobytes()
    assert [entry.character for entry in top] == list(text)
    assert np.array([entry.logprob for entry in top], np.float32).tobytes() == logprobs.tobytes()
    if as_prompt:
        assert not top[0].alternatives
    vocabulary, ids, expected = distributions(name, text if as_prompt else "\n" + text)
    tolerance = 0.2 if name.endswith("int8") else 1e-4
    known = [index for index in range(len(vocabulary)) if index != vocabulary.unknown_id]
    for entry, id_, row in zip(top[as_prompt:], ids, expected, strict=True):
        characters = [other.character for other in entry.alternatives]
        values = [other.logprob for other in entry.alternatives]
        assert len(set(characters)) == len(characters) == min(count, len(known))
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx([row[vocabulary.id_of(other)] for other in characters], abs=tolerance)
        assert values == pytest.approx(np.sort(row[known])[::-1][: len(values)], abs=tolerance)
        assert entry.logprob == pytest.approx(row[id_], abs=tolerance)
        for other in entry.alternatives:
            if other.character == entry.character:
                assert other.logprob == entry.logprob


@pytest.mark.parametrize("name", MODELS)
def test_alternatives_are_those_that_generate_has_after_the_prompt(served, name):
    """To the last bit; the first is the greedy character."""
    text, sampling = TEXTS[name], pb.Sampling(temperature=0)
    _, top, _ = served.score(model=name, text=text, as_prompt=True, top_logprobs=3)
    for end in range(1, len(text)):
        greedy, _, _, (entry, *_) = served.generated(model=name, prompt=text[:end], sampling=sampling)
        assert pb.CharLogprob.FromString(entry).alternatives == top[end].alternatives
        assert top[end].alternatives[0].character == greedy[0]


@pytest.mark.parametrize("count", [21, 2**32 - 1])
def test_more_than_20_alternatives_are_refused(served, count):
    error, details = refusal(served.stub.Score(pb.ScoreRequest(text="a", top_logprobs=count)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"top_logprobs must be at most 20 alternatives, not {count}"
    assert [violation.field for violation in details[BadRequest].field_violations] == ["top_logprobs"]


def test_a_character_without_a_symbol_is_named_with_its_place_in_the_text(served):
    for at, text in [(0, "漢"), (1, "a漢"), (70_000, "a" * 70_000 + "漢")]:
        error, details = refusal(served.stub.Score(pb.ScoreRequest(text=text, as_prompt=True)))
        assert f"text: character '漢' (U+6F22) at position {at} " in error.details()
        assert [violation.field for violation in details[BadRequest].field_violations] == ["text"]


# Messages


def raw_messages(served, **request):
    call = served.channel.unary_stream("/rill.v1.TextGeneration/Score", pb.ScoreRequest.SerializeToString)
    return list(call(pb.ScoreRequest(**request), timeout=60))


@pytest.mark.parametrize("count", [0, 20])
def test_messages_with_alternatives_are_short(served, count):
    """They take long to write, while other calls wait."""
    raw = raw_messages(served, text="To be " * 500, top_logprobs=count, as_prompt=True)
    messages = list(map(pb.ScoreResponse.FromString, raw))
    assert [len(message.top) for message in messages[:2]] == [1, 1]  # at once
    assert max(len(message.top) for message in messages) <= 64
    assert sum(len(message.top) for message in messages) == 3000
    assert max(map(len, raw)) < 30_000


def test_without_them_messages_are_as_they_were(served):
    raw = raw_messages(served, text="To be " * 500)
    for data in raw:
        message = pb.ScoreResponse.FromString(data)
        old = pb.ScoreResponse(position=message.position, logprobs=message.logprobs)
        if data is raw[-1]:
            old.total.CopyFrom(message.total)
        assert data == old.SerializeToString()
