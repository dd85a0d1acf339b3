"""A stream that is resumed from a token continues as if nothing had happened, whichever server made the token."""

import random
import signal
import string
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import grpc
import numpy as np
import pytest
from calls import check_messages, joined
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from random_models import make_run
from reference_texts import continuation
from servers import run_server, wait_until

from rill.export.graphs.build import build_bundle
from rill.export.write import manifest_of, write_bundle
from rill.sampling import Sampling
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

KEY = bytes(range(32))
INF = float("inf")
CELLS = [(cell, precision) for cell in ("gru", "lstm") for precision in ("fp32", "int8")]
NAMES = ["-".join(cell) for cell in CELLS]
NGRAMS = {"ngrams-fp32": {"ngrams": 3, "ngram_rows": 300}, "ngrams-int8": {"ngrams": 2, "cell": "lstm"}}
OWN_CHANNEL = [("grpc.use_local_subchannel_pool", 1)]  # otherwise channels to one server share a connection


@dataclass
class Pair:
    """Two servers with the same models and key, whose rounds differ in length."""

    bundles: dict
    targets: tuple
    stubs: tuple
    folder: object
    key: object

    def generate(self, which=0, timeout=60, **request):
        return list(self.stubs[which].Generate(pb.GenerateRequest(**request), timeout=timeout))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    (folder / "key").write_bytes(KEY)
    bundles = {}
    for name in (*NAMES, *NGRAMS):
        cell, precision = name.split("-")
        bundle = build_bundle(make_run(**NGRAMS.get(name, {"cell": cell, "layers": 2}), hidden=24), name, precision)
        write_bundle(bundle, manifest_of(bundle, {}, {}), folder / name)
        bundles[name] = bundle
    arguments = [*(folder / name for name in bundles), "--resume-key-file", folder / "key"]
    with ExitStack() as stack:
        servers = [stack.enter_context(run_server(*arguments, "--round-milliseconds", round_)) for round_ in (10, 1)]
        channels = [stack.enter_context(grpc.insecure_channel(server.target)) for server in servers]
        targets, stubs = tuple(server.target for server in servers), tuple(map(TextGenerationStub, channels))
        yield Pair(bundles, targets, stubs, folder, folder / "key")


@pytest.fixture(scope="module")
def gru(pair):
    return pair.bundles["gru-fp32"]


def refusal(call):
    """Return the status of a call that must fail, and its only detail."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    ((_, value),) = [pair for pair in caught.value.trailing_metadata() if pair[0] == "grpc-status-details-bin"]
    (packed,) = Status.FromString(value).details
    for kind in (BadRequest, ErrorInfo):
        detail = kind()
        if packed.Unpack(detail):
            return caught.value.code(), detail
    raise AssertionError(packed)


def token_at(
    bundle,
    position,
    character="T",
    seed=5,
    numerics="other",
    ttl=0,
    key=KEY,
):
    """A token that no server has issued: the model has read one character."""
    spec = StreamSpec(np.zeros(1, np.int64), 0, Sampling(), seed, 0)
    state = {name: np.zeros((bundle.layers, bundle.hidden), np.float32) for name, _ in bundle.states}
    snapshot = Snapshot(position, bundle.vocabulary.id_of(character), state)
    return ResumeTokens([key], ttl).seal(bundle, numerics, spec, snapshot)


# Exactness


def some_parameters(chance):
    parameters = {"temperature": chance.choice([0, 0.5, 1, 1.5])}
    for name, values in [("top_p", [0.8, 0.3]), ("top_k", [3, 7]), ("min_p", [0.02])]:
        if chance.random() < 0.35:
            parameters[name] = chance.choice(values)
    if chance.random() < 0.3:
        parameters["logit_bias"] = {"a": -INF, "b": 1.5}
    return parameters


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.long), 2, pytest.param(7, marks=pytest.mark.long), 100]
)
@pytest.mark.parametrize("name", [*NAMES, *NGRAMS])
def test_chains_of_resumes_change_nothing(pair, name, every):
    """Random prompts, parameters, stops and cuts; each call goes to one of two servers."""
    chance, bundle = random.Random(f"{name} {every}"), pair.bundles[name]
    for _ in range(6):
        parameters, seed = some_parameters(chance), chance.getrandbits(64)
        prompt = "".join(chance.choices(string.ascii_lowercase, k=chance.choice([0, 1, 5, 80])))
        count = chance.choice([5, 50, 600])
        whole = continuation(bundle, prompt, seed, 0, count, **parameters)
        stops, include = [], chance.random() < 0.5
        if chance.random() < 0.6:
            at = chance.randrange(1, count)
            stops = [whole[at : at + chance.choice([1, 3, 20, 60])], whole[at : at + 4] + "Zq", whole[1:4] + "!!x"]
            stops = chance.sample(stops, chance.randrange(1, 4))
        ends = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
        end, stop_start = min(ends, default=(count, count))

        got = ""
        request = {"prompt": prompt, "stop": stops, "include_stop": include}
        request["sampling"] = pb.Sampling(seed=seed, **parameters)
        while True:
            request |= {"max_chars": chance.randrange(1, count - len(got) + 1), "resume_every": every, "model": name}
            messages = pair.generate(chance.randrange(2), **request)
            check_messages(messages, len(got), every)
            assert messages[0].seed == seed
            last = messages[-1]
            if last.finish_reason == pb.FINISH_REASON_STOP or len(got) + len(joined(messages)) == count:
                got += joined(messages)
                break
            assert last.finish_reason == pb.FINISH_REASON_LENGTH
            assert len(joined(messages)) == request["max_chars"]
            message = chance.choice([message for message in messages if message.resume_token])
            got += joined(messages[: messages.index(message) + 1])
            request = {"resume_token": message.resume_token}
        assert (last.finish_reason == pb.FINISH_REASON_STOP) is bool(ends)
        if ends and not include:  # what was sent of a stop that continued in the next call stays sent
            assert stop_start <= len(got) < end
            assert got == whole[: len(got)]
        else:
            assert got == whole[:end]


def test_a_token_may_be_used_twice(pair, gru):
    first = pair.generate(prompt="To be", max_chars=40, sampling=pb.Sampling(seed=3, temperature=0.9))
    token = first[-1].resume_token
    ways = [joined(pair.generate(which, resume_token=token, max_chars=200)) for which in (0, 1, 0)]
    assert set(ways) == {continuation(gru, "To be" + joined(first), 3, 40, 200, temperature=0.9)}


CHANGES = [
    {"seed": 4},
    {"temperature": 0.0},
    {"temperature": 1.4},
    {"top_k": 2},
    {"top_k": 0},
    {"top_k": 2**32 - 1},
    {"top_p": 0.4},
    {"top_p": 1.0},
    {"min_p": 0.2},
    {"min_p": 0.0, "seed": 9},
    {"logit_bias": {"q": 3.0}},
    {"seed": 4, "temperature": 0.7},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_the_request_sets_replaces_only_that(pair, gru, change):
    before = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.1, "logit_bias": {"e": -INF, "t": 1.0}}
    first = pair.generate(prompt="To be", max_chars=30, sampling=pb.Sampling(seed=3, **before))
    request = pb.GenerateRequest(
        resume_token=first[-1].resume_token, max_chars=150, resume_every=10, sampling=pb.Sampling(**change)
    )
    messages = pair.generate(1, **{field.name: value for field, value in request.ListFields()})
    after = before | change
    seed = after.pop("seed", 3)
    after["top_k"] %= 2**32 - 1  # more than the number of characters: all
    assert messages[0].seed == seed
    expected = continuation(gru, "To be" + joined(first), seed, 30, 150, **after)
    assert joined(messages) == expected
    kept = continuation(gru, "To be" + joined(first), 3, 30, 150, **before)
    assert expected != kept
    # What was changed is in the next token.
    cut = next(at for at, message in enumerate(messages, 1) if message.resume_token)
    rest = pair.generate(resume_token=messages[cut - 1].resume_token, max_chars=150 - len(joined(messages[:cut])))
    assert joined(messages[:cut]) + joined(rest) == expected


def test_stops_are_kept_or_replaced_whole(pair, gru):
    whole = continuation(gru, "To be", 3, 0, 400)
    first, second = whole[100:106], whole[200:207]
    start = pair.generate(prompt="To be", max_chars=30, stop=[first], include_stop=True, sampling=pb.Sampling(seed=3))
    token = start[-1].resume_token

    def rest(**request):
        return joined(pair.generate(1, resume_token=token, max_chars=300, **request))

    assert rest() == whole[30 : whole.index(first) + 6]
    assert rest(include_stop=True) == whole[30 : whole.index(first) + 6]
    assert rest(stop=[second]) == whole[30 : whole.index(second)]
    assert rest(stop=[second], include_stop=True) == whole[30 : whole.index(second) + 7]


def test_the_limit_counts_from_the_resume_and_is_not_inherited(pair, gru):
    first = pair.generate(prompt="To be", max_chars=30, sampling=pb.Sampling(seed=3))
    messages = pair.generate(resume_token=first[-1].resume_token, max_chars=31)
    assert (messages[0].position, len(joined(messages)), messages[-1].usage.generated_chars) == (30, 31, 31)
    assert messages[-1].usage.prompt_chars == 0
    call = pair.stubs[0].Generate(pb.GenerateRequest(resume_token=first[-1].resume_token))
    got = ""
    while len(got) < 3000:
        got += next(call).text
    call.cancel()
    assert got == continuation(gru, "To be" + joined(first), 3, 30, len(got))


def test_a_prompt_beside_a_token_is_read_next(pair, gru):
    first = pair.generate(prompt="To be", max_chars=30, sampling=pb.Sampling(seed=3))
    for prompt in ("x", "é" * 700, "Who is it\n"):
        messages = pair.generate(1, resume_token=first[-1].resume_token, prompt=prompt, max_chars=60)
        assert joined(messages) == continuation(gru, "To be" + joined(first) + prompt, 3, 30, 60)
        assert (messages[0].position, messages[-1].usage.prompt_chars) == (30, len(prompt))
        # And its tokens go on from there.
        rest = pair.generate(resume_token=messages[-1].resume_token, max_chars=20)
        assert joined(rest) == continuation(gru, "To be" + joined(first) + prompt + joined(messages), 3, 90, 20)


def test_a_prompt_ends_what_had_begun(pair, gru):
    """A stop that goes on after the prompt is none."""
    whole = continuation(gru, "To be", 3, 0, 30)
    read = "To be" + whole + "x"
    after = continuation(gru, read, 3, 30, 20)
    first = pair.generate(prompt="To be", max_chars=30, stop=[whole[-3:] + after[:2]], sampling=pb.Sampling(seed=3))
    messages = pair.generate(resume_token=first[-1].resume_token, prompt="x", max_chars=20)
    assert joined(messages) == after


@pytest.mark.parametrize("position", [2**40, 2**40 + 5, 2**53 + 3, 2**61 + 1])
@pytest.mark.parametrize("name", ["gru-fp32", "lstm-int8"])
def test_large_positions(pair, name, position):
    bundle = pair.bundles[name]
    token = token_at(bundle, position, seed=2**64 - 1)
    messages = pair.generate(model=name, resume_token=token, max_chars=1100, resume_every=500)
    check_messages(messages, position, 500)
    assert joined(messages) == continuation(bundle, "T", 2**64 - 1, position, 1100)
    rest = pair.generate(1, model=name, resume_token=messages[-1].resume_token, max_chars=20)
    assert joined(rest) == continuation(bundle, "T" + joined(messages), 2**64 - 1, position + 1100, 20)


# What is refused, and what is only said


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        (lambda bundles: b"nonsense", "INVALID_ARGUMENT", "INVALID"),
        (lambda bundles: b"\1" * 200_000, "INVALID_ARGUMENT", "INVALID"),
        (lambda bundles: token_at(bundles["gru-fp32"], 0)[:-16] + b"x" * 16, "INVALID_ARGUMENT", "INVALID"),
        (lambda bundles: token_at(bundles["gru-fp32"], 0, key=b"k" * 32), "INVALID_ARGUMENT", "INVALID"),
        (lambda bundles: token_at(bundles["gru-fp32"], 0, ttl=-60), "INVALID_ARGUMENT", "EXPIRED"),
        (lambda bundles: token_at(bundles["gru-int8"], 0), "FAILED_PRECONDITION", "OTHER_MODEL"),
        (lambda bundles: token_at(bundles["lstm-fp32"], 0), "FAILED_PRECONDITION", "OTHER_MODEL"),
    ],
    ids=["nonsense", "long", "damaged", "other key", "expired", "int8", "lstm"],
)
def test_refused_tokens(pair, token, code, reason):
    request = pb.GenerateRequest(model="gru-fp32", resume_token=token(pair.bundles), max_chars=5)
    got, detail = refusal(pair.stubs[0].Generate(request))
    assert got.name == code
    assert (detail.reason, detail.domain) == (f"RESUME_TOKEN_{reason}", "rill")


def test_a_token_does_not_make_nonsense_sense(pair, gru):
    token = token_at(gru, 0)
    bans = dict.fromkeys(gru.vocabulary.symbols, -INF)
    for request, field in [
        ({"prompt": "漢"}, "prompt"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"logit_bias": bans}}, "sampling.logit_bias"),
        ({"max_chars": 2**62}, "max_chars"),
        ({"stop": [""]}, "stop"),
    ]:
        code, detail = refusal(pair.stubs[0].Generate(pb.GenerateRequest(resume_token=token, **request)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in detail.field_violations] == [field]


def test_other_numerics_are_said_and_no_obstacle(pair, gru):
    numerics = pair.stubs[0].ListModels(pb.ListModelsRequest()).models[0].numerics
    for made_with, said in ((numerics, []), ("onnxruntime-0.1-cpu-abacus", ["differs"])):
        token = token_at(gru, 3, numerics=made_with)
        call = pair.stubs[1].Generate(pb.GenerateRequest(resume_token=token, max_chars=50))
        metadata = [value for key, value in call.initial_metadata() if key == "rill-numerics"]
        messages = list(call)
        assert metadata == said
        assert joined(messages) == continuation(gru, "T", 5, 3, 50)
        # The new tokens are made here.
        call = pair.stubs[0].Generate(pb.GenerateRequest(resume_token=messages[-1].resume_token, max_chars=1))
        assert "rill-numerics" not in dict(call.initial_metadata())
        assert len(list(call)) == 1


# Life


def running(stub):
    return stub.ListModels(pb.ListModelsRequest()).streams_running


def test_resumes_are_exact_among_a_thousand_others(pair, gru):
    with ExitStack() as stack:
        others = []
        for target in pair.targets:
            stub = TextGenerationStub(stack.enter_context(grpc.insecure_channel(target, OWN_CHANNEL)))
            for number in range(500):
                request = pb.GenerateRequest(
                    prompt="x" * (number % 50),
                    resume_every=[0, 0, 100, 5][number % 4],
                    stop=["never"] * (number % 3 == 0),
                    chars_per_second=1 + number % 5,
                    sampling=pb.Sampling(seed=number, **[{}, {}, {}, {"top_p": 0.8}, {"top_k": 5}][number % 5]),
                )
                others.append(stub.Generate(request))
        for stub in pair.stubs:
            wait_until(lambda stub=stub: running(stub) == 500)

        got, request = "", {"prompt": "To be", "sampling": pb.Sampling(seed=8, top_p=0.9)}
        for hop in range(20):
            messages = pair.generate(hop % 2, max_chars=40, resume_every=10, **request)
            check_messages(messages, len(got), 10)
            message = [message for message in messages if message.resume_token][hop % 2 - 1]
            got += joined(messages[: messages.index(message) + 1])
            request = {"resume_token": message.resume_token}
        assert len(got) >= 400
        assert got == continuation(gru, "To be", 8, 0, len(got), top_p=0.9)
        for stub in pair.stubs:
            assert running(stub) == 500
        for call in others:
            call.cancel()
        for stub in pair.stubs:
            wait_until(lambda stub=stub: running(stub) == 0)


def test_a_resumed_stream_keeps_its_pace_from_there_on(pair, gru):
    token = token_at(gru, 100_000)
    started, times = time.monotonic(), []
    messages = []
    for message in pair.stubs[0].Generate(
        pb.GenerateRequest(resume_token=token, max_chars=31, chars_per_second=50), timeout=20
    ):
        messages.append(message)
        times.append(time.monotonic() - started)
    assert joined(messages) == continuation(gru, "T", 5, 100_000, 31)
    assert times[0] < 0.5
    assert 0.55 < times[-1] < 5  # 30 intervals of 20 ms
    count = 0
    for message, seconds in zip(messages, times, strict=True):
        count += len(message.text)
        assert count <= 50 * seconds + 2
    assert max(later - sooner for sooner, later in pairwise(times)) < 0.5


def test_streams_with_and_without_a_pace_live_side_by_side(pair, gru):
    """A stream that joins paced streams is not delayed by them, and does not delay them."""
    paced = pair.stubs[0].Generate(pb.GenerateRequest(resume_token=token_at(gru, 0), chars_per_second=20))
    got = next(paced).text
    for number in range(20):
        messages = pair.generate(resume_token=token_at(gru, 1000 + number), max_chars=30)
        assert joined(messages) == continuation(gru, "T", 5, 1000 + number, 30)
    while len(got) < 10:
        got += next(paced).text
    paced.cancel()
    assert got == continuation(gru, "T", 5, 0, len(got))


def test_a_deadline_ends_a_resumed_stream(pair, gru):
    request = pb.GenerateRequest(resume_token=token_at(gru, 7), chars_per_second=200, resume_every=5)
    messages = []
    with pytest.raises(grpc.RpcError) as caught:
        messages.extend(pair.stubs[0].Generate(request, timeout=0.4))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    *_, last = (message for message in messages if message.resume_token)
    read = "T" + joined(messages[: messages.index(last) + 1])
    rest = pair.generate(1, resume_token=last.resume_token, max_chars=20)
    assert joined(rest) == continuation(gru, read, 5, 6 + len(read), 20)
    wait_until(lambda: running(pair.stubs[0]) == 0)


def test_cancelled_right_after_a_token(pair, gru):
    token, read = token_at(gru, 0), "T"
    for hop in range(10):
        call = pair.stubs[hop % 2].Generate(pb.GenerateRequest(resume_token=token, resume_every=3))
        got = ""
        for message in call:
            got += message.text
            if message.resume_token:
                break
        call.cancel()
        assert got == continuation(gru, read, 5, len(read) - 1, len(got))
        token, read = message.resume_token, read + got
    for stub in pair.stubs:
        wait_until(lambda stub=stub: running(stub) == 0)


def test_limits_of_a_call(pair, gru):
    arguments = [pair.folder / "gru-fp32", "--max-chars", 100, "--resume-key-file", pair.key]
    with run_server(*arguments) as limited, grpc.insecure_channel(limited.target) as channel:
        stub = TextGenerationStub(channel)
        code, detail = refusal(stub.Generate(pb.GenerateRequest(max_chars=101)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert detail.field_violations[0].field == "max_chars"
        assert "101" in detail.field_violations[0].description
        token, got = token_at(gru, 0), ""
        for max_chars in (0, 100, 7, 0):  # as many as one likes, by resuming
            messages = list(stub.Generate(pb.GenerateRequest(resume_token=token, max_chars=max_chars)))
            assert messages[-1].finish_reason == pb.FINISH_REASON_LENGTH
            assert len(joined(messages)) == (max_chars or 100)
            token, got = messages[-1].resume_token, got + joined(messages)
        assert got == continuation(gru, "T", 5, 0, 307)


def test_a_drained_server_hands_its_streams_over(pair, gru):
    """Streams that are unread, held back by a stop, or still reading their prompt, all at once."""
    whole = continuation(gru, "To be", 3, 0, 300)
    near = whole[10:90] + "Q!"
    with run_server(pair.folder / "gru-fp32", "--drain-seconds", 1, "--resume-key-file", pair.key) as drained:
        with grpc.insecure_channel(drained.target, OWN_CHANNEL) as channel:
            stub = TextGenerationStub(channel)
            reading = stub.Generate(pb.GenerateRequest(prompt="a" * 900_000, sampling=pb.Sampling(seed=1)))
            unread = stub.Generate(pb.GenerateRequest(prompt="To be", sampling=pb.Sampling(seed=3), logprobs=1))
            got = {"unread": [next(unread)], "held": [], "resumed": []}
            held = stub.Generate(
                pb.GenerateRequest(prompt="To be", stop=[near], chars_per_second=40, sampling=pb.Sampling(seed=3))
            )
            resumed = stub.Generate(pb.GenerateRequest(resume_token=token_at(gru, 50), chars_per_second=1))
            got["resumed"].append(next(resumed))
            while sum(len(message.text) for message in got["held"]) < 10:
                got["held"].append(next(held))
            time.sleep(0.5)
            drained.process.send_signal(signal.SIGTERM)
            for name, call in [("unread", unread), ("held", held), ("resumed", resumed)]:
                with pytest.raises(grpc.RpcError) as caught:
                    got[name].extend(call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.RpcError) as caught:
                next(reading)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert drained.process.wait(timeout=20) == 0

    for name, messages in got.items():
        last = messages[-1]
        assert last.finish_reason == pb.FINISH_REASON_DRAINING, name
        assert last.resume_token
        assert last.usage.generated_chars == len(joined(messages))
    assert joined(got["held"]) == whole[:10]  # what may become a stop was made, and not sent
    read = {"unread": "To be", "held": "To be", "resumed": "T"}
    for name, messages in got.items():
        text = read[name] + joined(messages)
        last = messages[-1]
        rest = pair.generate(1, resume_token=last.resume_token, max_chars=120)
        seed = 5 if name == "resumed" else 3
        assert rest[0].position == last.position + len(last.text)
        assert joined(rest) == continuation(gru, text, seed, rest[0].position, 120)
