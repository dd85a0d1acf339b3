"""Models whose symbols are longer than a character, with a start and ends, on a real server against a plain loop."""

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, cycle

import grpc
import numpy as np
import pytest
import torch
from calls import Talk, refusal
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import MOLECULES, make_run, save_bundle
from reference_texts import first_stop
from servers import run_server

from rill.bundle import MANIFEST
from rill.sampling import Sampling, choose, uniforms
from rill.serve.engine.text_codec import TextCodec
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub
from rill.vocabulary import Vocabulary

RUNS = {
    "molecules": make_run(MOLECULES),
    # Symbols that are beginnings of others, an unknown one, and two ends; the start is no end.
    "longest": make_run(
        Vocabulary(("<unk>", "a", "ab", "abc", "b", "c", "\n", "^", "$", "$$"), "longest", "^", ("$", "$$")),
        cell="lstm",
        hidden=16,
    ),
    "letters": make_run(Vocabulary((*"abcdefgh\n", "<s>", "</s>"), start="<s>", ends=("</s>",)), hidden=16),
    "odd": make_run(Vocabulary(("😀" * 256, "\n\n", "a\tb", "'\"", "x" * 256, "\u2028é"), "longest"), hidden=8),
    "plain": make_run(("\n", "a", "b", "c"), hidden=8),
}
LENGTH, STOP = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name, run in RUNS.items():
        save_bundle(run, folder / name)
    with run_server(*(folder / name for name in RUNS)) as running:
        yield running


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield TextGenerationStub(channel)


# ---- a plain loop


@cache
def model_of(name):
    return RUNS[name].build().eval()


class Reader:
    """A model that reads one symbol after another."""

    def __init__(self, name, ids):
        self.name, self.vocabulary, self.state = name, RUNS[name].vocabulary, ()
        for index in ids:
            self.read(index)

    def read(self, index):
        with torch.no_grad():
            logits, self.state = model_of(self.name)(torch.tensor([[index]]), *[self.state] * bool(self.state))
        self.logits = logits[0, -1].numpy()

    def logprobs(self):
        return torch.log_softmax(torch.tensor(self.logits).double(), 0).numpy()

    def generate(self, seed, count=400, position=0, **sampling):
        """The ids until an end symbol, which is the last of them, or `count` ids."""
        ids = []
        for u in uniforms(seed, position, count):
            ids.append(choose(self.logits, u, Sampling(**sampling), self.vocabulary.never_ids))
            if ids[-1] in self.vocabulary.end_ids:
                break
            self.read(ids[-1])
        return ids


def begun(name, prompt=""):
    """A model that has begun to read a text."""
    vocabulary = RUNS[name].vocabulary
    return Reader(name, vocabulary.begin(vocabulary.encode(prompt)))


@cache
def expected(name, seed, prompt=""):
    """The ids of the text after `prompt`, and whether an end follows."""
    ids = begun(name, prompt).generate(seed)
    has_end = ids[-1] in RUNS[name].vocabulary.end_ids
    return ids[: len(ids) - has_end], has_end


def symbols(name, ids):
    return ["\ufffd" if s == "<unk>" else s for s in (RUNS[name].vocabulary.symbols[index] for index in ids)]


# ---- what came


@dataclass
class Got:
    """A text in the making: its messages are checked as they come."""

    name: str
    lengths: list = field(default_factory=list)
    text: str = ""

    def add(self, messages):
        """Add the messages of a call, and return the last one."""
        is_first = True
        for message in messages:
            assert message.position == len(self.lengths)
            assert message.text_position == len(self.text)
            if RUNS[self.name].vocabulary.are_characters:
                assert not message.symbol_lengths
                lengths = [1] * len(message.text)
            else:
                lengths = list(message.symbol_lengths)
            assert sum(lengths) == len(message.text)
            assert len(lengths) <= 1 or not is_first
            self.lengths += lengths
            self.text += message.text
            is_first = False
        assert message.finish_reason
        assert message.resume_token
        return message

    def symbols(self):
        ends = list(accumulate(self.lengths))
        return [self.text[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


def request(seed, **fields):
    sampling = pb.Sampling(seed=seed, **fields.pop("sampling", {}))
    return pb.GenerateRequest(sampling=sampling, **{"max_chars": 400, **fields})


PROMPTS = {"molecules": ["", "C", "CCl[nH](%10"], "longest": ["", "abcab", "ab漢c"], "letters": ["", "abc"]}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_text_is_that_of_a_plain_loop(stub, name):
    vocabulary, lengths = RUNS[name].vocabulary, set()
    for seed in range(12):
        for prompt in PROMPTS[name]:
            ids, has_end = expected(name, seed, prompt)
            got = Got(name)
            messages = list(stub.Generate(request(seed, model=name, prompt=prompt, logprobs=1), timeout=60))
            last = got.add(messages)
            assert got.symbols() == symbols(name, ids)
            assert last.finish_reason == (STOP if has_end else LENGTH)
            assert last.usage.prompt_chars == len(vocabulary.encode(prompt))
            assert last.usage.generated_chars == len(ids)
            logprobs = [entry for message in messages for entry in message.logprobs]
            assert [entry.character for entry in logprobs] == symbols(name, ids)
            lengths.add(len(ids))
    assert len(lengths) > 5


def test_many_texts_at_once_are_those_of_a_plain_loop(stub):
    def generate(seed):
        got = Got("molecules")
        return got.add(stub.Generate(request(seed), timeout=60)).finish_reason, got.symbols()

    with ThreadPoolExecutor(20) as pool:
        texts = list(pool.map(generate, range(100)))
    assert texts == [(STOP, symbols("molecules", expected("molecules", seed)[0])) for seed in range(100)]


@settings(max_examples=60)
@given(data=st.data())
def test_a_text_is_the_same_however_it_is_cut_into_calls(stub, data):
    name = data.draw(st.sampled_from(["molecules", "longest"]))
    seed, every = data.draw(st.integers(0, 11)), data.draw(st.sampled_from([0, 1, 5]))
    logprobs = data.draw(st.sampled_from([None, 0, 2]))
    ids, has_end = expected(name, seed)
    got, token, reason = Got(name), b"", None
    while reason != STOP and len(got.lengths) < 400:
        most = data.draw(st.integers(1, 30))
        parameters = request(
            seed, model=name, resume_token=token, max_chars=most, resume_every=every, logprobs=logprobs
        )
        last = got.add(stub.Generate(parameters, timeout=60))
        token, reason = last.resume_token, last.finish_reason
    assert got.symbols()[: len(ids)] == symbols(name, ids)
    assert (reason == STOP) is has_end
    if has_end:  # and again
        last = got.add(stub.Generate(pb.GenerateRequest(resume_token=token), timeout=60))
        assert (last.finish_reason, last.text, last.position) == (STOP, "", len(ids))
        assert last.usage.generated_chars == 0


@settings(max_examples=25)
@given(data=st.data())
def test_a_text_is_the_same_with_pauses_and_snapshots(server, data):
    seed = data.draw(st.integers(0, 11))
    # What is drawn must not depend on when a pause takes effect.
    kinds = data.draw(st.lists(st.sampled_from(["snapshot", "pause", "generate"]), min_size=1, max_size=8))
    counts = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    ids, _ = expected("molecules", seed)
    got, talk = Got("molecules"), Talk(server.target)
    try:
        talk.open(model="molecules", seed=seed)
        for kind, count in zip(cycle(kinds), cycle(counts), strict=False):
            if kind == "snapshot":
                assert talk.snapshot().position == len(got.lengths)
            if kind != "pause":
                reason = got.add(talk.generate(max_chars=count)).finish_reason
            else:
                talk.begin(max_chars=400)
                talk.tell(pause=pb.InteractRequest.Pause())
                reason = None
                while (event := next(talk.call)).WhichOneof("event") == "output":
                    assert event.output.position == len(got.lengths)
                    assert event.output.text_position == len(got.text)
                    got.lengths += event.output.symbol_lengths
                    got.text += event.output.text
                    reason = event.output.finish_reason
                assert event.paused.position == len(got.lengths)
            if reason == STOP:
                break
        assert got.symbols()[: len(ids)] == symbols("molecules", ids)
        # The state after the end goes on with other text.
        fed = talk.feed("CCl")
        assert fed.chars == 2
        assert talk.snapshot().position == len(got.lengths)
    finally:
        talk.channel.close()


def test_a_text_goes_on_after_a_snapshot_in_its_middle(server):
    talk, got, positions = Talk(server.target), Got("molecules"), []
    talk.open(model="molecules", seed=4, logit_bias={"<end>": -math.inf})
    talk.begin(max_chars=20_000)
    outputs = []
    while not (outputs and outputs[-1].finish_reason):
        event = next(talk.call)
        if event.WhichOneof("event") == "snapshot":
            positions.append(event.snapshot.position)
            continue
        outputs.append(event.output)
        if len(outputs) < 5:
            talk.tell(snapshot=pb.InteractRequest.Snapshot())
    got.add(outputs)
    assert 0 < min(positions) < 20_000
    assert got.symbols()[:300] == symbols("molecules", begun("molecules").generate(4, 300, logit_bias={16: -math.inf}))
    talk.channel.close()


@pytest.mark.parametrize("name", PROMPTS)
def test_a_text_that_has_ended_goes_on_with_another_seed(stub, name):
    vocabulary = RUNS[name].vocabulary
    for seed in range(12):
        ids, has_end = expected(name, seed)
        if not has_end:
            continue
        got = Got(name)
        token = got.add(stub.Generate(request(seed, model=name), timeout=60)).resume_token
        rest = Reader(name, [vocabulary.start_id, *ids]).generate(seed + 100, 50, len(ids))
        ended = rest[-1] in vocabulary.end_ids
        last = got.add(stub.Generate(request(seed + 100, resume_token=token, max_chars=50), timeout=60))
        assert got.symbols() == symbols(name, ids + rest[: len(rest) - ended])
        assert last.finish_reason == (STOP if ended else LENGTH)


def test_a_text_may_be_empty(stub):
    seed = next(seed for seed in range(1000) if not expected("molecules", seed)[0])
    (message,) = stub.Generate(request(seed, logprobs=2, stop=["C"], resume_every=1), timeout=60)
    assert (message.text, message.finish_reason, message.position, message.seed) == ("", STOP, 0, seed)
    assert not message.logprobs
    assert not message.symbol_lengths
    (again,) = stub.Generate(pb.GenerateRequest(resume_token=message.resume_token), timeout=60)
    assert (again.text, again.finish_reason) == ("", STOP)
    rest = begun("molecules", "CCl").generate(seed)
    got = Got("molecules")
    got.add(stub.Generate(request(seed, resume_token=message.resume_token, prompt="CCl"), timeout=60))
    assert got.symbols() == symbols("molecules", rest[:-1])


# ---- stops

CODEC = TextCodec(MOLECULES)
STOPS = st.lists(st.sampled_from(["C", "Cl", "Br", "[nH]", "%10", "1", "2", "=", "("]), min_size=1, max_size=3)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 40),
    stops=st.lists(STOPS.map("".join), min_size=1, max_size=4),
    include=st.booleans(),
    most=st.sampled_from([7, 400]),
    logprobs=st.sampled_from([None, 1]),
)
def test_stops_are_found_symbol_by_symbol(stub, seed, stops, include, most, logprobs):
    ids, _ = expected("molecules", seed)
    coded = CODEC.code(ids[:most])
    found = first_stop(coded, [CODEC.code(MOLECULES.encode(stop)) for stop in stops])
    got = Got("molecules")
    parameters = request(seed, stop=stops, include_stop=include, max_chars=most, logprobs=logprobs, resume_every=3)
    messages = list(stub.Generate(parameters, timeout=60))
    last = got.add(messages)
    length = found[include] if found else len(coded)
    assert got.symbols() == symbols("molecules", ids[:length])
    assert last.finish_reason == (LENGTH if len(ids) >= most and not found else STOP)
    if logprobs:
        assert sum(len(message.logprobs) for message in messages) == length
    # The token is right after the text that was sent, whatever was found behind it.
    rest = Reader("molecules", [0, *ids[:length]]).generate(999, 20, length)
    fields = {"sampling": {"logit_bias": {"#": 0.0}}, "stop": ["[nH][nH][nH][nH]"], "max_chars": 20}
    got.add(stub.Generate(request(999, resume_token=last.resume_token, **fields), timeout=60))
    assert got.symbols()[length:] == symbols("molecules", [index for index in rest if index != 16])


def test_a_stop_does_not_end_a_text_within_a_symbol(stub):
    ids = next(
        ids
        for ids, _ in (expected("molecules", seed) for seed in range(100))
        if 14 in ids and 7 in ids[ids.index(14) :] and 7 not in ids[: ids.index(14)]
    )
    seed = next(seed for seed in range(100) if expected("molecules", seed)[0] == ids)
    got = Got("molecules")
    got.add(stub.Generate(request(seed, stop=["C"]), timeout=60))
    assert "Cl" in got.symbols()
    assert got.symbols() == symbols("molecules", ids[: ids.index(7)])


def test_a_stop_that_had_begun_goes_on_in_the_next_call(stub):
    ids, _ = next((ids, end) for ids, end in (expected("molecules", seed) for seed in range(100)) if len(ids) > 12)
    seed = next(seed for seed in range(100) if expected("molecules", seed)[0] == ids)
    stop = "".join(symbols("molecules", ids[3:9]))
    at = first_stop(CODEC.code(ids), [CODEC.code(ids[3:9])])[0]
    got = Got("molecules")
    last = got.add(stub.Generate(request(seed, stop=[stop], max_chars=at + 4), timeout=60))
    assert last.finish_reason == LENGTH
    last = got.add(stub.Generate(pb.GenerateRequest(resume_token=last.resume_token), timeout=60))
    assert (last.finish_reason, last.text, last.position) == (STOP, "", at + 4)


# ---- biases


def test_an_end_can_be_forbidden_and_forced(stub):
    bias = {"logit_bias": {"<end>": -math.inf}}
    ids = begun("molecules").generate(3, 200, logit_bias={16: -math.inf})
    got = Got("molecules")
    assert got.add(stub.Generate(request(3, max_chars=200, sampling=bias), timeout=60)).finish_reason == LENGTH
    assert got.symbols() == symbols("molecules", ids)
    # The text went on beyond its end; a resume may end it.
    token = stub.Generate(request(3, max_chars=9, sampling=bias), timeout=60)
    token = list(token)[-1].resume_token
    forced = request(3, resume_token=token, sampling={"logit_bias": {"<end>": 1000.0}})
    (message,) = stub.Generate(forced, timeout=60)
    assert (message.text, message.position, message.finish_reason) == ("", 9, STOP)


@pytest.mark.parametrize(
    ("name", "key", "what"),
    [
        ("molecules", "CC", "'CC' is not one symbol of the model"),
        ("molecules", "", "'' is not one symbol"),
        ("molecules", "<start>", "the model never chooses '<start>'"),
        ("longest", "<unk>", "the model never chooses '<unk>'"),
        ("longest", "漢", "'漢' is not one symbol of the model"),
        ("letters", "<s>", "'<s>' is not one character"),
        ("letters", "ab", "'ab' is not one character"),
    ],
)
def test_a_bias_of_no_symbol_is_refused(stub, name, key, what):
    error, details = refusal(stub.Generate(request(1, model=name, sampling={"logit_bias": {key: 1.0}})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"logit_bias: {what}" in error.details()
    assert [violation.field for violation in details[BadRequest].field_violations] == ["sampling.logit_bias"]


def test_not_all_symbols_may_be_banned_but_all_except_the_end(stub):
    banned = dict.fromkeys(MOLECULES.symbols[1:-1], -math.inf)
    (message,) = stub.Generate(request(1, sampling={"logit_bias": banned}), timeout=60)
    assert (message.text, message.finish_reason) == ("", STOP)
    error, _ = refusal(stub.Generate(request(1, sampling={"logit_bias": {**banned, "<end>": -math.inf}})))
    assert "bans every" in error.details()


# ---- texts that cannot be cut


@pytest.mark.parametrize("text", ["CClX(", "CC[nH", "C\n", "C<end>", "<start>C"])
def test_text_that_cannot_be_cut_is_named_with_its_position(server, stub, text):
    at = {"X": 3, "[": 2, "\n": 1, "<": text.find("<")}[text.strip("Cl(nHedstar>")[:1] or "\n"]
    calls = {
        "prompt": stub.Generate(request(1, prompt=text)),
        "stop": stub.Generate(request(1, stop=["C", text])),
        "text": stub.Score(pb.ScoreRequest(text=text)),
    }
    for name, call in calls.items():
        error, details = refusal(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{name}: character {text[at]!r} " in error.details()
        assert f"at position {at} does not begin a symbol" in error.details()
        assert [violation.field for violation in details[BadRequest].field_violations] == [name]
    talk = Talk(server.target)
    talk.open(model="molecules")
    talk.tell(feed=text)
    assert talk.event("snapshot").position == 0
    code, detail = talk.error()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.field_violations[0].field == "feed"
    talk.channel.close()


# ---- scores


def scored(stub, text, name="molecules", **fields):
    messages = list(stub.Score(pb.ScoreRequest(model=name, text=text, **fields), timeout=60))
    logprobs = []
    for message in messages:
        assert message.position == len(logprobs)
        logprobs += message.logprobs
    total = messages[-1].total
    assert total.chars == len(logprobs)
    assert total.logprob == pytest.approx(sum(logprobs), abs=1e-6)
    if logprobs:
        assert total.bits_per_char == pytest.approx(-sum(logprobs) / len(logprobs) / math.log(2))
    return logprobs, total, [entry for message in messages for entry in message.top]


def plain_scores(name, text, reader=None):
    """The log-probabilities of the symbols of a text and of its end."""
    vocabulary = RUNS[name].vocabulary
    reader, logprobs = reader or begun(name), []
    for index in vocabulary.encode(text):
        logprobs.append(reader.logprobs()[index])
        reader.read(index)
    ends = reader.logprobs()[list(vocabulary.end_ids)]
    return [*logprobs, *([np.logaddexp.reduce(ends)] if len(ends) else [])]


@pytest.mark.parametrize("as_prompt", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("molecules", ""),
        ("molecules", "C"),
        ("molecules", "CCl(Br)c1[nH]%10" * 20),
        ("longest", ""),
        ("longest", "abcab\nb漢a"),
        ("letters", "abc\nd"),
    ],
)
def test_the_end_of_a_text_is_scored(stub, name, text, as_prompt):
    """The start symbol is read first, so that the first symbol of a prompt has a log-probability as well."""
    *symbol_scores, end = plain_scores(name, text)
    without, total, _ = scored(stub, text, name, as_prompt=as_prompt)
    assert without == pytest.approx(symbol_scores, abs=1e-4)
    included, with_end, _ = scored(stub, text, name, as_prompt=as_prompt, include_end=True)
    assert included[:-1] == without
    assert included[-1] == pytest.approx(end, abs=1e-4)
    # Both tokens are right after the text, before its end.
    texts = {}
    for kind, token in (("without", total.resume_token), ("with", with_end.resume_token)):
        got = Got(name)
        got.add(stub.Generate(request(5, resume_token=token), timeout=60))
        texts[kind] = got.symbols()
    got = Got(name)
    got.add(stub.Generate(request(5, model=name, prompt=text), timeout=60))
    assert texts == {"without": got.symbols(), "with": got.symbols()}


@pytest.mark.parametrize("name", ["molecules", "longest"])
def test_alternatives_of_scores_have_the_texts_of_symbols(stub, name):
    text = {"molecules": "CCl[nH]", "longest": "abcab"}[name]
    vocabulary = RUNS[name].vocabulary
    logprobs, _, top = scored(stub, text, name, top_logprobs=20, include_end=True)
    shown = [*symbols(name, vocabulary.encode(text)), vocabulary.ends[0]]
    assert [entry.character for entry in top] == shown
    assert [entry.logprob for entry in top] == logprobs
    chosen = {vocabulary.symbols[index] for index in range(len(vocabulary)) if index not in vocabulary.never_ids}
    assert all({each.character for each in entry.alternatives} == chosen for entry in top)


def test_the_rest_of_a_text_is_scored_with_its_end(stub):
    ids, _ = expected("molecules", 0)
    last = list(stub.Generate(request(0, max_chars=3), timeout=60))[-1]
    reader = Reader("molecules", [0, *ids[:3]])
    logprobs, total, _ = scored(stub, "CCl", resume_token=last.resume_token, include_end=True)
    assert logprobs == pytest.approx(plain_scores("molecules", "CCl", reader), abs=1e-4)
    (again,) = stub.Generate(request(0, resume_token=total.resume_token, max_chars=1), timeout=60)
    assert (again.position, again.text_position) == (3, sum(map(len, symbols("molecules", ids[:3]))))


def test_many_texts_are_scored_with_their_ends(stub):
    for name, texts in {"molecules": ["CCl", "", "C[nH]", "X"], "longest": ["", "abab", "漢"]}.items():
        (message,) = stub.Score(pb.ScoreRequest(model=name, texts=texts, include_end=True), timeout=60)
        for text, total in zip(texts, message.totals, strict=True):
            if text == "X":
                assert "'X' (U+0058) at position 0 does not begin a symbol" in total.error
                continue
            _, alone, _ = scored(stub, text, name, include_end=True)
            assert (total.chars, total.logprob) == (alone.chars, pytest.approx(alone.logprob, abs=1e-6))


@pytest.mark.parametrize("fields", [{"text": "ab"}, {"texts": ["ab", "b"]}])
def test_a_model_without_an_end_cannot_score_it(stub, fields):
    error, details = refusal(stub.Score(pb.ScoreRequest(model="plain", include_end=True, **fields)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "include_end: model 'plain' has no end symbol"
    assert [violation.field for violation in details[BadRequest].field_violations] == ["include_end"]


# ---- odd and hostile bundles


def test_symbols_may_be_long_and_have_any_characters(stub):
    """No message is larger than any client takes, and the log-probabilities of long symbols are right."""
    count = 6000
    ids = begun("odd", "a\tb\n\n").generate(1, count)
    got = Got("odd")
    messages = list(stub.Generate(request(1, model="odd", prompt="a\tb\n\n", max_chars=count), timeout=60))
    assert got.add(messages).finish_reason == LENGTH
    assert got.symbols() == symbols("odd", ids)
    assert max(message.ByteSize() for message in messages) < 2**21
    for message in stub.Generate(request(1, model="odd", prompt="a\tb\n\n", max_chars=9, logprobs=6), timeout=60):
        assert [entry.character for entry in message.logprobs] == symbols(
            "odd", ids[message.position :][: len(message.logprobs)]
        )
        for entry in message.logprobs:
            assert {each.character for each in entry.alternatives} == set(RUNS["odd"].vocabulary.symbols)
    stop = "😀" * 256 * 2
    end = first_stop(TextCodec(RUNS["odd"].vocabulary).code(ids), ["\0\0"])[0]
    got = Got("odd")
    got.add(stub.Generate(request(1, model="odd", prompt="a\tb\n\n", max_chars=count, stop=[stop]), timeout=60))
    assert len(got.lengths) == end


HOSTILE = {
    "tokenizer": ("regex:(a*)*", "the tokenizer's pattern cannot be used: the pattern has '*', which has no bound"),
    "start_symbol": ("<s>", "the start symbol '<s>' is not in the vocabulary"),
    "end_symbols": (["C", "C"], "the end symbols repeat a symbol"),
    "vocabulary": (["C", ""], "the start symbol '<start>' is not in the vocabulary"),
}


@pytest.mark.long
def test_a_hostile_bundle_is_refused_in_a_sentence_and_the_others_are_served(tmp_path):
    save_bundle(RUNS["molecules"], tmp_path / "good")
    for key, (value, _) in HOSTILE.items():
        shutil.copytree(tmp_path / "good", tmp_path / key)
        manifest = json.loads((tmp_path / key / MANIFEST).read_text())
        (tmp_path / key / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    with run_server(tmp_path) as running, running.client() as client:
        assert [model.name for model in client.models().models] == ["good"]
        _, log = running.stop()
    for key, (_, reason) in HOSTILE.items():
        assert re.search(f"{key}/{MANIFEST} is wrong: {re.escape(reason)}.*; it is not served\n", log), log


# ---- the list of models


def test_models_are_listed_with_their_symbols(stub):
    models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}
    for name, run in RUNS.items():
        info, vocabulary = models[name], run.vocabulary
        assert tuple(info.vocabulary) == vocabulary.symbols
        assert (info.tokenizer, info.start_symbol) == (vocabulary.tokenizer, vocabulary.start)
        assert tuple(info.end_symbols) == vocabulary.ends


@pytest.mark.long
def test_a_drained_interaction_says_where_its_text_ends(tmp_path):
    save_bundle(RUNS["molecules"], tmp_path / "molecules")
    with run_server(tmp_path / "molecules", "--drain-seconds", 5) as running:
        talk, got = Talk(running.target), Got("molecules")
        talk.open(seed=1)
        got.add(talk.generate(max_chars=5))
        running.process.terminate()
        last = talk.event("output")
        got.add([last])
        assert last.finish_reason == pb.FINISH_REASON_DRAINING
        talk.channel.close()
