"""Interact over real connections: whatever is done to the live state, it is the state that Generate would have."""

import math
import random
import signal
import string
import time
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
from calls import Request, Talk, generate
from google.rpc.error_details_pb2 import ErrorInfo
from random_models import make_run, save_bundle
from servers import run_server, wait_until

from rill.sampling import Sampling
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

STOPPED, LENGTH, DRAINING = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_DRAINING


@contextmanager
def talk(target, **options):
    conversation = Talk(target, **options)
    try:
        yield conversation
    finally:
        conversation.call.cancel()
        conversation.channel.close()


def generated(target, **request):
    """Do the same with Generate; returns the text and its last message."""
    with grpc.insecure_channel(target) as channel:
        messages = list(TextGenerationStub(channel).Generate(pb.GenerateRequest(**request), timeout=60))
    return joined(messages), messages[-1]


def joined(messages):
    return "".join(message.text for message in messages)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with two kinds of cells, and n-gram tables."""
    folder = tmp_path_factory.mktemp("interact")
    save_bundle(make_run(layers=2, hidden=24), folder / "gru")
    save_bundle(make_run(cell="lstm", hidden=24), folder / "lstm")
    save_bundle(make_run(ngrams=3, hidden=24), folder / "ngrams")
    with run_server(folder / "gru", folder / "lstm", folder / "ngrams") as server:
        yield server.target


def test_a_conversation_is_one_text(served):
    """Feed, generate, feed again: the text equals that of Generate, character by character."""
    with talk(served) as at:
        opened = at.open(seed=7, temperature=0.9)
        assert opened.seed == 7
        assert len(opened.model_id) == 64
        assert at.feed("To be").chars == 5
        first = at.generate(max_chars=100)
        assert at.feed(" or not ").chars == 8
        second = at.generate(max_chars=200)
        at.end()
        assert list(at.call) == []
    text, last = generated(served, prompt="\nTo be", max_chars=100, sampling=pb.Sampling(seed=7, temperature=0.9))
    assert joined(first) == text
    assert joined(second) == generated(served, prompt=" or not ", resume_token=last.resume_token, max_chars=200)[0]
    for messages, start in ((first, 0), (second, 100)):
        assert messages[0].position == start
        assert messages[0].seed == 7
        assert len(messages[0].text) == 1
        assert messages[-1].finish_reason == LENGTH
        assert messages[-1].resume_token
        assert messages[-1].usage.generated_chars == len(joined(messages))
        assert 0 < messages[-1].usage.first_char_seconds <= messages[-1].usage.total_seconds
        assert not any(message.seed for message in messages[1:])
        assert not any(message.resume_token for message in messages[:-1])


@pytest.mark.parametrize("model", ["gru", "lstm", "ngrams"])
@pytest.mark.parametrize("seed", range(3))
def test_random_actions_give_the_state_of_generate(served, model, seed):
    """Random actions, some during generation, against the same done with Generate and tokens."""
    chance = random.Random(f"{model} {seed}")
    known = {"token": b"", "sampling": {"seed": seed}, "prompt": "\n"}  # of the next Generate

    def check(text, token):
        if text:
            sampling = pb.Sampling(**known["sampling"])
            asked = {"model": model, "prompt": known["prompt"], "resume_token": known["token"], "sampling": sampling}
            assert text == generated(served, **asked, max_chars=len(text))[0]
            known.update(token=token, sampling={}, prompt="")

    with talk(served) as at:
        at.open(model=model, seed=seed)
        for _ in range(25):
            match chance.randrange(5):
                case 0:
                    words = "".join(chance.choices(string.ascii_lowercase, k=chance.choice([0, 1, 30])))
                    assert at.feed(words).chars == len(words)
                    known["prompt"] += words
                case 1:
                    messages = at.generate(max_chars=chance.choice([1, 2, 50, 700]))
                    check(joined(messages), messages[-1].resume_token)
                case 2:
                    changed = {"temperature": chance.choice([0.5, 0.8, 1.2]), "top_p": chance.choice([1.0, 0.9])}
                    at.tell(update=pb.Sampling(**changed))
                    known["sampling"] |= changed
                case 3:
                    at.begin()
                    for _ in range(chance.randrange(3)):
                        time.sleep(chance.choice([0, 0, 0.01]))
                        at.tell(snapshot=Request.Snapshot())
                        text, event = at.until("snapshot")
                        check(text, event.resume_token)
                    text, paused = at.pause()
                    snapshot = at.snapshot()
                    assert snapshot.position == paused.position
                    check(text, snapshot.resume_token)
                case 4:
                    position = at.snapshot().position
                    assert at.snapshot().position == position


def test_an_update_takes_effect_at_the_next_character(served):
    """Old parameters up to some position, new ones from there on; every character is right for its parameters."""
    with talk(served) as at:
        at.open(seed=3)
        at.begin()
        before = at.event("output").text
        at.tell(update=pb.Sampling(temperature=0))
        at.tell(snapshot=Request.Snapshot())
        text, snapshot = at.until("snapshot")
        text = before + text
        after = at.event("output").text + at.pause()[0]
    assert snapshot.position == len(text)
    whole = generated(served, max_chars=len(text), sampling=pb.Sampling(seed=3))[0]
    changed = next((at for at, (old, new) in enumerate(zip(whole, text, strict=True)) if old != new), len(text))
    greedy = pb.Sampling(temperature=0)
    rest = text[changed:] + after
    assert rest
    assert generated(served, prompt="\n" + text[:changed], max_chars=len(rest), sampling=greedy)[0] == rest
    assert generated(served, resume_token=snapshot.resume_token, max_chars=len(after) or 1)[0].startswith(after)


def test_another_seed_takes_effect_in_mid_text(served):
    with talk(served) as at:
        at.open(seed=3)
        at.begin()
        at.event("output")
        at.tell(update=pb.Sampling(seed=9))
        at.tell(snapshot=Request.Snapshot())
        _, snapshot = at.until("snapshot")
        after = at.event("output").text + at.pause()[0]
        after += joined(at.generate(max_chars=50))
    assert generated(served, resume_token=snapshot.resume_token, max_chars=len(after))[0] == after
    seeded = pb.Sampling(seed=9)
    assert generated(served, resume_token=snapshot.resume_token, max_chars=50, sampling=seeded)[0] == after[:50]


def test_actions_during_generation_add_no_characters(served):
    with talk(served) as at:
        at.open(seed=3)
        at.begin(max_chars=10_000)
        text = ""
        for _ in range(5):
            at.tell(snapshot=Request.Snapshot())
            more, snapshot = at.until("snapshot")
            text += more
            assert snapshot.position == len(text)
        while not (message := at.event("output")).finish_reason:
            text += message.text
        text += message.text
    assert message.usage.generated_chars == len(text) == 10_000
    assert text == generated(served, max_chars=10_000, sampling=pb.Sampling(seed=3))[0]


def test_a_feed_is_scored(served):
    """The sum of the log-probabilities that Score returns for the same text at the same position."""
    with talk(served) as at, grpc.insecure_channel(served) as channel:
        at.open()
        stub = TextGenerationStub(channel)
        for text in ("hello", "é" * 3000, "", "b"):
            token = at.snapshot().resume_token
            fed = at.feed(text)
            (*_, total) = stub.Score(pb.ScoreRequest(resume_token=token, text=text))
            assert (fed.chars, fed.logprob) == (len(text), pytest.approx(total.total.logprob, abs=1e-6 * len(text)))
            assert math.isfinite(fed.logprob)


def test_a_pause_keeps_the_text_so_far(served):
    whole = generated(served, max_chars=60_000, sampling=pb.Sampling(seed=1))[0]
    with talk(served) as at:
        at.open(seed=1)
        got, pauses = "", []
        for seconds in (0, 0.02, 0, 0.1):
            at.begin()
            time.sleep(seconds)
            text, paused = at.pause()
            got += text
            assert paused.position == len(got)
            pauses.append(len(got))
        assert pauses == sorted(pauses)
        assert pauses[-1] > 0
        rest = at.generate(max_chars=100)
    assert got + joined(rest) == whole[: len(got) + 100]


def test_a_pause_may_come_too_late(served):
    """The generation ended before the client knew: the answer is the same; a second pause is refused."""
    with talk(served) as at:
        at.open()
        at.begin(max_chars=3)
        at.tell(pause=Request.Pause())
        text, paused = at.until("paused")
        assert len(text) == paused.position <= 3
        at.generate(max_chars=3 - len(text) + 1)
        assert at.pause() == ("", pb.InteractResponse.Paused(position=4))
        at.tell(pause=Request.Pause())
        assert at.event("snapshot").position == 4
        assert at.error() == (
            grpc.StatusCode.FAILED_PRECONDITION,
            ErrorInfo(reason="ACTION_OUT_OF_ORDER", domain="rill"),
        )


def test_paced_and_with_logprobs(served):
    with talk(served) as at:
        at.open(seed=2)
        began = time.monotonic()
        paced = at.generate(max_chars=20, chars_per_second=100)
        assert time.monotonic() - began > 0.15
        with_logprobs = at.generate(max_chars=200, logprobs=3)
    assert len(paced) > 3
    characters = [logprob for message in with_logprobs for logprob in message.logprobs]
    assert "".join(logprob.character for logprob in characters) == joined(with_logprobs)
    assert {len(logprob.alternatives) for logprob in characters} == {3}


# Stops


def test_stops_are_those_of_one_generation(served):
    whole = generated(served, max_chars=400, sampling=pb.Sampling(seed=5))[0]
    stop = whole[100:104]
    at_stop = whole.index(stop)
    with talk(served) as at:
        at.open(seed=5)
        first = at.generate(max_chars=400, stop=[stop])
        assert (joined(first), first[-1].finish_reason) == (whole[:at_stop], STOPPED)
        second = at.generate(max_chars=400 - at_stop)
        assert (joined(second), second[-1].finish_reason) == (whole[at_stop:], LENGTH)


def test_a_paused_generation_continues_with_its_stops(served):
    """The first half of the stop precedes the pause, and so does the part that was held back."""
    whole = generated(served, max_chars=300, sampling=pb.Sampling(seed=5))[0]
    stop = whole[100:110]
    with talk(served) as at:
        at.open(seed=5)
        text = joined(at.generate(max_chars=104, stop=[stop]))
        assert text == whole[:104]  # it was asked for
        again = at.generate(max_chars=100, stop=[stop])
        assert (joined(again), again[-1].finish_reason) == ("", STOPPED)
    with talk(served) as at:
        at.open(seed=5)
        at.begin(stop=[stop], chars_per_second=400)
        got, _ = at.pause()
        rest = at.generate()
        assert (got + joined(rest), rest[-1].finish_reason) == (whole[: whole.index(stop)], STOPPED)


def test_a_stream_from_a_token_has_the_stops_of_the_token(served):
    whole = generated(served, max_chars=300, sampling=pb.Sampling(seed=5))[0]
    stop = whole[200:206]
    _, last = generated(served, max_chars=50, stop=[stop], include_stop=True, sampling=pb.Sampling(seed=5))
    with talk(served) as at:
        at.open(token=last.resume_token)
        rest = at.generate(max_chars=1000)
        assert (joined(rest), rest[-1].finish_reason) == (whole[50 : whole.index(stop) + 6], STOPPED)
        assert rest[0].position == 50


# What is refused


ERROR = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "action", [{}, {"feed": "a"}, generate(), {"pause": Request.Pause()}, {"update": pb.Sampling()}]
)
def test_the_first_action_must_be_open(served, action):
    with talk(served) as at:
        at.tell(**action)
        assert at.error()[0] is ERROR
    with talk(served) as at:
        at.end()
        assert at.error()[0] is ERROR


@pytest.fixture(scope="module")
def long_text(served):
    """The text of Generate for "ab" and seed 4: longer than what is generated until an action is refused."""
    return generated(served, prompt="\nab", max_chars=20_000, sampling=pb.Sampling(seed=4))[0]


@pytest.mark.parametrize(
    ("action", "code", "field"),
    [
        ({"open": Request.Open()}, ERROR, None),
        ({}, INVALID, "action"),
        ({"feed": "a中b"}, INVALID, "feed"),
        (generate(max_chars=2**63), INVALID, "max_chars"),
        (generate(logprobs=21), INVALID, "logprobs"),
        (generate(stop=[""]), INVALID, "stop"),
        (generate(chars_per_second=-1), INVALID, "chars_per_second"),
        ({"update": pb.Sampling(temperature=-1)}, INVALID, "sampling.temperature"),
        ({"update": pb.Sampling(logit_bias={"中": 1})}, INVALID, "sampling.logit_bias"),
    ],
    ids=["open", "nothing", "feed", "max_chars", "logprobs", "stop", "pace", "temperature", "bias"],
)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "generating"])
def test_a_refused_action_leaves_the_state_unchanged(served, long_text, action, code, field, busy):
    """The state is sent before the status, and continues with the same text."""
    with talk(served) as at:
        at.open(seed=4)
        at.feed("ab")
        got = joined(at.generate(max_chars=50))
        if busy:
            at.begin()
        at.tell(**action)
        text, kept = at.until("snapshot")
        got += text
        refused, detail = at.error()
        if busy and action.keys() & {"feed", "generate"}:
            code, field = ERROR, None
        assert refused is code
        assert field is None or detail.field_violations[0].field == field
    assert kept.position == len(got)
    assert got == long_text[: len(got)]
    with talk(served) as at:
        assert at.open(token=kept.resume_token).seed == 4
        assert got + joined(at.generate(max_chars=30)) == long_text[: len(got) + 30]


def test_opening_is_checked(served):
    for asked, code in [
        ({"model": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"resume_token": b"x"}, INVALID),
        ({"sampling": pb.Sampling(top_p=2)}, INVALID),
    ]:
        with talk(served) as at:
            at.tell(open=Request.Open(**asked))
            assert at.error()[0] is code


def test_malformed_messages_end_only_their_call(served):
    with grpc.insecure_channel(served) as channel:
        call = channel.stream_stream("/rill.v1.TextGeneration/Interact")
        opening = Request(open=Request.Open()).SerializeToString()
        endless = Request(generate=Request.Generate()).SerializeToString()
        for actions in ([], [opening], [opening, endless]):
            events = call(iter([*actions, b"\xff"]), timeout=20)
            kinds = []
            with pytest.raises(grpc.RpcError, match="malformed request") as caught:
                kinds.extend(pb.InteractResponse.FromString(event).WhichOneof("event") for event in events)
            assert caught.value.code() is INVALID
            assert kinds[-1:] == ["snapshot"] * bool(actions)  # a refused action leaves the state unchanged
        assert len(list(call(iter([opening]), timeout=20))) == 1


# Slots, drains, replaced models


def test_a_call_keeps_its_slot_until_it_ends(tiny_folder):
    """An idle call is parked and keeps its slot; however it ends, the slot is free."""
    with run_server(tiny_folder, "--max-streams", 1, "--max-waiting", 0) as server, server.client() as client:

        def load():
            models = client.models()
            return models.streams_running, models.streams_parked

        for way in ("end", "cancel", "error", "cancel while it generates"):
            with talk(server.target) as first, talk(server.target) as second:
                first.open()
                first.feed("abc")
                first.generate(max_chars=10)
                wait_until(lambda: load() == (1, 1))
                second.tell(open=Request.Open())
                assert second.error()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
                match way:
                    case "end":
                        first.end()
                        assert list(first.call) == []
                    case "error":
                        first.tell()
                        first.until("snapshot")
                        first.error()
                    case "cancel":
                        first.call.cancel()
                    case _:
                        first.begin()
                        first.event("output")
                        first.call.cancel()
            wait_until(lambda: load() == (0, 0))
        with talk(server.target) as at:
            at.open()
            at.end()
            assert list(at.call) == []
        assert server.stop()[0] == 0


def test_a_call_counts_as_a_stream_of_its_client(tiny_folder):
    with run_server(tiny_folder, "--max-streams-per-client", 1) as server:
        for _ in range(2):
            with talk(server.target) as first, talk(server.target) as second:
                first.open()
                second.tell(open=Request.Open())
                assert second.error()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
                first.end()
                assert list(first.call) == []


def test_a_drain_ends_each_with_its_token(tiny_folder, tmp_path):
    """A call that waits for its client ends at once, one that generates at its end: both continue elsewhere."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    arguments = (tiny_folder, "--resume-key-file", key)
    tokens, texts = [], []
    with ExitStack() as stack:
        server = stack.enter_context(run_server(*arguments, "--drain-seconds", 2))
        idle, busy, reading = (stack.enter_context(talk(server.target)) for _ in range(3))
        for at in (idle, busy, reading):
            at.open(seed=6)
        texts = [joined(idle.generate(max_chars=40)), "", ""]
        busy.begin(chars_per_second=100)
        texts[1] = busy.event("output").text
        server.process.send_signal(signal.SIGTERM)
        for number, at in enumerate((idle, busy, reading)):
            while not (message := at.event("output")).finish_reason:
                texts[number] += message.text
            assert (message.finish_reason, message.position) == (DRAINING, len(texts[number]))
            tokens.append(message.resume_token)
            assert at.error()[0] is grpc.StatusCode.UNAVAILABLE
        server.process.wait(timeout=20)
        assert server.process.returncode == 0
    with run_server(*arguments) as server:
        whole = generated(server.target, max_chars=2000, sampling=pb.Sampling(seed=6))[0]
        for text, token in zip(texts, tokens, strict=True):
            rest = generated(server.target, resume_token=token, max_chars=100)[0]
            assert text + rest == whole[: len(text) + 100]


def test_a_state_stays_with_its_model(tmp_path):
    """A replaced bundle keeps running for the calls that use it."""
    save_bundle(make_run(seed=1), tmp_path / "m")
    with run_server(tmp_path) as server, server.client() as client, talk(server.target) as at:
        opened = at.open(seed=1)
        text = joined(at.generate(max_chars=50))
        whole = generated(server.target, max_chars=100, sampling=pb.Sampling(seed=1))[0]
        save_bundle(make_run(seed=2), tmp_path / "new")
        (tmp_path / "m").rename(tmp_path / ".old")
        (tmp_path / "new").rename(tmp_path / "m")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: client.models().models[0].model_id != opened.model_id)
        assert text + joined(at.generate(max_chars=50)) == whole


def test_tokens_from_other_numerics_are_reported(tmp_path, tiny_folder, tiny):
    """`rill-numerics: differs`, as with Generate."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    state = {name: np.zeros((tiny.layers, tiny.hidden), np.float32) for name, _ in tiny.states}
    snapshot, spec = Snapshot(9, 1, state), StreamSpec(np.zeros(1, np.int64), 0, Sampling(), 5, 0)
    token = ResumeTokens([key.read_bytes()], 0).seal(tiny, "elsewhere", spec, snapshot)
    with run_server(tiny_folder, "--resume-key-file", key) as server, talk(server.target) as at:
        assert at.open(token=token).seed == 5
        assert ("rill-numerics", "differs") in at.call.initial_metadata()
        assert at.generate(max_chars=1)[0].position == 9
