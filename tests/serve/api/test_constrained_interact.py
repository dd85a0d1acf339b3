"""Interact with a constraint: generations that go on in it, actions between and during them, and how it ends."""

import re

import grpc
import pytest
import regex
from calls import Request, Talk, joined
from constrained import constraint_of
from servers import run_server

from rill.v1 import rill_pb2 as pb

STOP, LENGTH, DRAINING = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_DRAINING
LONG = r"([a-f]{3} )*"


@pytest.fixture
def talk(served):
    calls = []

    def begin(**sampling):
        calls.append(Talk(served.target))
        calls[-1].open(**{"seed": 3, **sampling})
        return calls[-1]

    yield begin
    for call in calls:
        call.call.cancel()
        call.channel.close()


def done(messages):
    """The text of a generation, why it ended, and whether it matches."""
    last = messages[-1]
    matches = last.usage.matches if last.usage.HasField("matches") else None
    return joined(messages), last.finish_reason, matches


def test_generations_go_on_in_the_constraint(talk, served):
    pattern = "[a-c]{4},[d-f]{4}."
    whole, _ = served.text(regex=pattern, seed=3)
    call = talk(constraint=constraint_of(pattern))
    parts = [done(call.generate(max_chars=3)) for _ in range(4)]
    assert "".join(text for text, *_ in parts) == whole
    assert [rest for _, *rest in parts] == [[LENGTH, False], [LENGTH, False], [LENGTH, False], [STOP, True]]
    assert done(call.generate(max_chars=3)) == ("", STOP, True)  # and again, until another constraint is set
    assert done(call.generate()) == ("", STOP, True)
    call.tell(update=pb.Sampling(constraint=constraint_of("yes|no")))
    assert done(call.generate())[0] in ("yes", "no")
    call.tell(update=pb.Sampling(constraint=constraint_of("yes|no")))  # the same begins anew
    assert done(call.generate())[0] in ("yes", "no")
    call.tell(update=pb.Sampling(constraint=pb.Constraint()))
    assert done(call.generate(max_chars=30))[1:] == (LENGTH, None)


def test_feeding_does_not_move_it(talk):
    call = talk(constraint=constraint_of("[a-c]{4},[d-f]{4}"))
    text, *_ = done(call.generate(max_chars=3))
    call.feed("zzz, and no part of it")
    rest, reason, matches = done(call.generate())
    assert re.fullmatch("[a-c]{4},[d-f]{4}", text + rest)
    assert (reason, matches) == (STOP, True)
    call.feed("x")
    assert done(call.generate(max_chars=3)) == ("", STOP, True)


def test_other_updates_leave_it_alone(talk):
    call = talk(constraint=constraint_of("[a-c]{4},[d-f]{4}"))
    text, *_ = done(call.generate(max_chars=3))
    for update in ({"seed": 8}, {"temperature": 0.3}, {"top_k": 2}, {"logit_bias": {"d": float("-inf")}}):
        call.tell(update=pb.Sampling(**update))
        text += done(call.generate(max_chars=1))[0]
    text += done(call.generate())[0]
    assert re.fullmatch("[a-c]{4},[ef]{4}", text)


def test_snapshots_hold_it(talk, served):
    call = talk(constraint=constraint_of("[a-c]{4},[d-f]{4}"))
    before = call.snapshot().resume_token
    text, *_ = done(call.generate(max_chars=6))
    token = call.snapshot().resume_token
    rest, *_ = done(call.generate())
    assert served.text(resume_token=token, seed=3)[0] == rest
    assert served.text(resume_token=before, seed=3)[0] == text + rest
    after = call.snapshot().resume_token
    assert served.text(resume_token=after)[1].finish_reason == STOP
    other = Talk(served.target)
    other.open(token=token)
    assert done(other.generate()) == (rest, STOP, True)
    other.end()


def test_it_can_be_changed_while_the_model_generates(talk):
    """The text goes on by the new one, from its beginning."""
    call = talk(constraint=constraint_of(LONG))
    call.begin(chars_per_second=300)
    head = call.event("output").text
    call.tell(update=pb.Sampling(constraint=constraint_of("[X-Z]{5}")))
    text, last = head, None
    while last is None or not last.finish_reason:
        last = call.event("output")
        text += last.text
    assert (last.finish_reason, last.usage.matches) == (STOP, True)
    assert regex.fullmatch(LONG, text[:-5], partial=True)
    assert re.fullmatch("[X-Z]{5}", text[-5:])


def test_it_can_be_removed_and_emptied_while_the_model_generates(talk):
    call = talk(constraint=constraint_of(LONG))
    call.begin(chars_per_second=300)
    text = call.event("output").text
    call.tell(update=pb.Sampling(constraint=constraint_of("")))  # nothing may follow
    while not (output := call.event("output")).finish_reason:
        text += output.text
    assert (output.finish_reason, output.usage.matches) == (STOP, True)
    call.tell(update=pb.Sampling(constraint=pb.Constraint()))
    assert done(call.generate(max_chars=20))[1:] == (LENGTH, None)


def test_pauses_and_snapshots_between_two_characters(talk, served):
    """A snapshot while the model generates; then a pause, and the rest: the text is what it would have been."""
    pattern = "([a-f]{3} ){40}"
    whole, _ = served.text(regex=pattern, seed=3)
    call = talk(constraint=constraint_of(pattern))
    call.begin(chars_per_second=400)
    text = call.event("output").text
    call.tell(snapshot=Request.Snapshot())
    more, snapshot = call.until("snapshot")
    text += more
    assert snapshot.position == len(text)
    assert text + served.text(resume_token=snapshot.resume_token)[0] == whole
    more, paused = call.pause()
    text += more
    assert paused.position == len(text) < len(whole)
    rest, reason, matches = done(call.generate())
    assert (text + rest, reason, matches) == (whole, STOP, True)


def test_a_pause_is_allowed_after_an_end_by_the_constraint(talk):
    call = talk(constraint=constraint_of("ab"))
    assert done(call.generate()) == ("ab", STOP, True)
    assert done(call.generate()) == ("", STOP, True)
    assert call.pause()[1].position == 2


@pytest.mark.parametrize(
    ("update", "field"),
    [
        ({"constraint": constraint_of("(")}, "sampling.constraint.regex"),
        ({"constraint": constraint_of("0")}, "sampling.constraint.regex"),
        ({"constraint": constraint_of("a*", terminator="ab")}, "sampling.constraint.terminator"),
        ({"constraint": constraint_of("xy"), "logit_bias": {"y": float("-inf")}}, "sampling.logit_bias"),
        ({"logit_bias": {",": float("-inf")}}, "sampling.logit_bias"),
    ],
)
def test_a_bad_update_changes_nothing(talk, served, update, field):
    pattern = "[a-c]{4},[d-f]{4}"
    call = talk(constraint=constraint_of(pattern))
    text, *_ = done(call.generate(max_chars=3))
    call.tell(update=pb.Sampling(seed=77, temperature=0, **update))
    token = call.event("snapshot").resume_token
    code, detail = call.error()
    assert (code, detail.field_violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    whole, _ = served.text(regex=pattern, seed=3)
    assert text + served.text(resume_token=token)[0] == whole


def test_a_constraint_that_cannot_be_opened(served):
    for sampling, field in (
        ({"constraint": constraint_of("(")}, "sampling.constraint.regex"),
        ({"constraint": constraint_of("ab"), "logit_bias": {"b": float("-inf")}}, "sampling.logit_bias"),
    ):
        call = Talk(served.target)
        call.tell(open=Request.Open(sampling=pb.Sampling(**sampling)))
        code, detail = call.error()
        assert (code, detail.field_violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        call.channel.close()


def test_a_bundle_of_before_constraints_keeps_its_state(served):
    call = Talk(served.target)
    call.open(model="older", seed=3)
    call.tell(update=pb.Sampling(constraint=constraint_of("ab")))
    assert call.event("snapshot").resume_token
    assert call.error()[0] is grpc.StatusCode.FAILED_PRECONDITION
    call.channel.close()


@pytest.mark.parametrize("is_generating", [False, True])
def test_a_drained_conversation_says_whether_its_text_matches(tiny_folder, is_generating):
    with run_server(tiny_folder, "--drain-seconds", 1.2) as server:
        call = Talk(server.target)
        call.open(seed=3, constraint=constraint_of("[a-c]{4000}"))
        call.generate(max_chars=5)
        if is_generating:
            call.begin(chars_per_second=50)
            call.event("output")
        server.process.terminate()
        while not (output := call.event("output")).finish_reason:
            pass
        assert (output.finish_reason, output.usage.matches) == (DRAINING, False)
        assert output.usage.HasField("matches")
        assert output.resume_token
        assert call.error()[0] is grpc.StatusCode.UNAVAILABLE
        call.channel.close()
