"""Texts that must match, over real sockets: what is generated, what ends it, its tokens, and what is refused."""

import re

import numpy as np
import pytest
import regex
from calls import joined
from constrained import request_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import LETTERS

from rill.sampling import Sampling
from rill.serve.api.constraints import packed
from rill.serve.api.resume_tokens import ResumeTokens
from rill.serve.constraints.patterns import Pattern
from rill.serve.engine.types import Snapshot, StreamSpec
from rill.v1 import rill_pb2 as pb

KEY = bytes(range(32))
INF = float("inf")
STOP, LENGTH = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH
SENTENCE = r"[A-Z][a-z]{2,7}( [a-z]{1,5}){1,3}\."
PATTERNS = [
    SENTENCE,
    r"yes|no|maybe",
    r"([a-c]+,)*d",
    r"(é|[^e\n]){5}",
    r"a*b*c*",
    r".{12}",
    r"(the|them|they)",
    r"[ab]{0,3}\n?",
    r"([A-Z]{2}|[a-z] ?){4,6}",
    r"\w+(, \w+)*",
]


def check(pattern, text, last, most=0):
    """A text that STOP ended matches; another is the beginning of one that does."""
    if last.finish_reason == STOP:
        assert re.fullmatch(pattern, text), (pattern, text)
    else:
        assert last.finish_reason == LENGTH
        assert len(text) == most
        assert regex.fullmatch(pattern, text, partial=True), (pattern, text)
    assert last.usage.HasField("matches")
    assert last.usage.matches == bool(re.fullmatch(pattern, text)), (pattern, text)
    assert last.usage.generated_chars == len(text)
    assert last.resume_token


def by_biases(served, pattern, seed, most, prompt="", terminator="\n", **sampling):
    """The text of a constraint, made without one: before each character the caller bans what may not follow."""
    text, token, last = "", b"", None
    while len(text) < most:
        may = {c for c in LETTERS if c != terminator and regex.fullmatch(pattern, text + c, partial=True)}
        if regex.fullmatch(pattern, text + terminator, partial=True):
            may.add(terminator)
        elif not may:
            return text, True
        elif re.fullmatch(pattern, text):
            may.add(terminator)
        bias = {c: -INF for c in LETTERS if c not in may}
        new, last = served.text(
            prompt="" if token else prompt, resume_token=token, max_chars=1, seed=seed, logit_bias=bias, **sampling
        )
        if new == terminator and not regex.fullmatch(pattern, text + terminator, partial=True):
            return text, True
        text, token = text + new, last.resume_token
    return text, False


# ---- texts


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_match(served, pattern):
    for seed in range(12):
        for most in (200, 3):
            check(pattern, *served.text(regex=pattern, seed=seed, max_chars=most, prompt="Once"), most)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 1.5, "top_k": 5, "top_p": 0.9}])
def test_a_constraint_bans_what_cannot_follow_and_does_nothing_else(served, pattern, sampling):
    """By the uniforms of the positions: the text is the one that biases at each character give."""
    for seed in (3, 4):
        text, last = served.text(regex=pattern, seed=seed, max_chars=15, prompt="The ", **sampling)
        expected, has_ended = by_biases(served, pattern, seed, 15, "The ", **sampling)
        assert text == expected
        if len(text) < 15:
            assert has_ended
            assert last.finish_reason == STOP


def test_choices(served):
    choices = ["yes", "no", "the one", "the other", "\n", "é.é", "noon"]
    texts = set()
    for seed in range(60):
        text, last = served.text(constraint={"choices": choices}, seed=seed, max_chars=20)
        assert text in choices
        assert (last.finish_reason, last.usage.matches) == (STOP, True)
        texts.add(text)
    assert len(texts) > 3


def test_choices_are_literal(served):
    text, _ = served.text(constraint={"choices": ["a.", "a."]}, max_chars=5)
    assert text == "a."
    assert served.text(constraint={"choices": [".", ""], "terminator": ""}, max_chars=5)[0] in (".", "")


def test_an_empty_pattern_ends_at_once(served):
    """And the prompt has been read."""
    for prompt, fields in (("", {}), ("Once upon", {}), ("x" * 70_000, {}), ("a", {"max_chars": 5})):
        messages = served.messages(regex="", prompt=prompt, **fields)
        (message,) = messages
        assert (message.text, message.finish_reason, message.position) == ("", STOP, 0)
        assert (message.usage.matches, message.usage.prompt_chars) == (True, len(prompt))
        assert message.seed == 1
        rest, last = served.text(resume_token=message.resume_token, constraint=pb.Constraint(), max_chars=30)
        assert (rest, last.usage.HasField("matches")) == (served.text(prompt=prompt, max_chars=30)[0], False)


def test_the_terminator(served):
    """It is chosen where the text matches; the default is a newline, unless the pattern has one there."""
    for terminator, alphabet in ((None, "ab"), (".", "ab"), ("é", "ab"), ("\n", "ab")):
        ends = set()
        for seed in range(20):
            constraint = {"pattern": "[ab]+", "terminator": terminator}
            text, last = served.text(constraint=constraint, seed=seed, max_chars=400)
            assert set(text) <= set(alphabet)
            ends.add(last.finish_reason)
            assert last.usage.matches
            if last.finish_reason == STOP:
                assert last.usage.generated_chars == len(text) < 400
        assert STOP in ends
    text, last = served.text(constraint={"pattern": "[ab]+", "terminator": ""}, max_chars=100)
    assert (len(text), last.finish_reason, last.usage.matches) == (100, LENGTH, True)
    text, last = served.text(regex=r"[ab\n]+", max_chars=400)  # the newline is the text's
    assert (last.finish_reason, "\n" in text) == (LENGTH, True)


def test_no_limit_is_needed_where_a_pattern_ends(served):
    text, last = served.text(regex=SENTENCE)
    check(SENTENCE, text, last)
    assert last.finish_reason == STOP


def test_a_text_is_the_same_in_a_crowd(served):
    requests = [
        request_of(regex=pattern, seed=seed, max_chars=60, prompt=prompt)
        for pattern in PATTERNS
        for seed, prompt in ((1, ""), (2, "So"), (3, "x" * 300))
    ]
    requests += [request_of(seed=seed, max_chars=60) for seed in range(10)]
    alone = [joined(served.stub.Generate(request, timeout=60)) for request in requests]
    calls = [served.stub.Generate(request, timeout=60) for request in requests]
    assert [joined(call) for call in calls] == alone


def test_stop_strings(served):
    """One may end a text before it matches; at its end the text is what it would be without."""
    whole, _ = served.text(regex=SENTENCE, seed=5)
    stop = whole[4:6]
    at = whole.index(stop)
    for include in (False, True):
        text, last = served.text(regex=SENTENCE, seed=5, stop=[stop], include_stop=include)
        assert (text, last.finish_reason, last.usage.matches) == (whole[: at + 2 * include], STOP, False)
        rest, last = served.text(resume_token=last.resume_token, stop=["Zq"])
        assert (text + rest, last.usage.matches) == (whole, True)
    begun, last = served.text(regex=SENTENCE, seed=5, stop=[whole[-3:] + "X"])  # held back to the end
    assert (begun, last.usage.matches) == (whole, True)


def test_log_probabilities_are_those_of_the_model(served):
    prompt, terminated = "The ", r"[a-f]{2,}"
    for pattern, count in ((SENTENCE, 3), (terminated, 0)):
        messages = served.messages(regex=pattern, prompt=prompt, seed=9, logprobs=count)
        text, entries = joined(messages), [entry for message in messages for entry in message.logprobs]
        assert [entry.character for entry in entries] == list(text)
        assert text == served.text(regex=pattern, prompt=prompt, seed=9)[0]
        scored = list(served.stub.Score(pb.ScoreRequest(text=prompt + text, as_prompt=True, top_logprobs=count)))
        top = [entry for message in scored for entry in message.top][len(prompt) :]
        np.testing.assert_array_equal([e.logprob for e in entries], [e.logprob for e in top])
        for ours, theirs in zip(entries, top, strict=True):
            assert [a.character for a in ours.alternatives] == [a.character for a in theirs.alternatives]


# ---- tokens


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        (SENTENCE, {}),
        (r"\w+(, \w+)*", {"top_k": 9, "temperature": 1.3}),
        (SENTENCE, {"stop": ["xq", "abc"]}),
        (r"[a-d]*", {"logprobs": 2, "logit_bias": {"a": 1.0}}),
    ],
)
def test_resumed_at_every_position(served, pattern, fields):
    whole, last = served.text(regex=pattern, seed=6, max_chars=40, prompt="Ah ", **fields)
    for count in range(1, len(whole)):
        head, middle = served.text(regex=pattern, seed=6, max_chars=count, prompt="Ah ", **fields)
        assert whole.startswith(head)
        rest, again = served.text(resume_token=middle.resume_token, max_chars=40 - len(head))
        assert (head + rest, again.finish_reason, again.usage.matches) == (
            whole,
            last.finish_reason,
            last.usage.matches,
        )


def replace_count(last, chars):
    """The last message of a text that another call has begun."""
    last.usage.generated_chars = chars
    return last


def test_a_token_of_an_ended_text_ends_at_once(served):
    for pattern in (SENTENCE, "[ab]+"):
        whole, last = served.text(regex=pattern, seed=3)
        assert last.finish_reason == STOP
        for fields in ({}, {"seed": 99}, {"max_chars": 7}, {"stop": ["a"]}, {"temperature": 0.1}, {"logprobs": 3}):
            again = served.messages(resume_token=last.resume_token, **fields)
            assert [message.text for message in again] == [""]
            (message,) = again
            assert (message.finish_reason, message.usage.matches, message.position) == (STOP, True, len(whole))
            assert message.usage.generated_chars == 0
        (third,) = served.messages(resume_token=message.resume_token)
        assert (third.finish_reason, third.usage.matches) == (STOP, True)
        # A new constraint begins anew where the text is; the same one, too; none is none.
        more, _ = served.text(resume_token=last.resume_token, constraint={"choices": ["yes", "no"]}, max_chars=9)
        assert more in ("yes", "no")
        more, _ = served.text(resume_token=last.resume_token, regex=pattern, max_chars=100)
        assert regex.fullmatch(pattern, more, partial=True)
        more, end = served.text(resume_token=last.resume_token, constraint=pb.Constraint(), max_chars=50)
        assert (len(more), end.usage.HasField("matches")) == (50, False)


def test_a_prompt_does_not_move_the_constraint(served):
    """It is read, and the text goes on from it."""
    whole, last = served.text(regex=SENTENCE, seed=3, max_chars=5)
    for prompt in ("zzz", "\n\n", "y" * 70_000):
        rest, end = served.text(resume_token=last.resume_token, prompt=prompt, seed=8)
        check(SENTENCE, whole + rest, replace_count(end, len(whole + rest)))
        assert end.usage.prompt_chars == len(prompt)
    # Also where the text has ended.
    _, ended = served.text(regex="ab", seed=3)
    (message,) = served.messages(resume_token=ended.resume_token, prompt="zzz")
    assert (message.finish_reason, message.usage.prompt_chars) == (STOP, 3)
    rest, _ = served.text(resume_token=message.resume_token, constraint=pb.Constraint(), max_chars=40)
    expected, _ = served.text(resume_token=ended.resume_token, prompt="zzz", constraint=pb.Constraint(), max_chars=40)
    assert rest == expected


def test_scoring_does_not_move_the_constraint(served):
    whole, last = served.text(regex=SENTENCE, seed=3, max_chars=5)
    (*_, scored) = served.stub.Score(pb.ScoreRequest(resume_token=last.resume_token, text="qqq"))
    rest, end = served.text(resume_token=scored.total.resume_token, seed=3)
    check(SENTENCE, whole + rest, replace_count(end, len(whole + rest)))


def test_a_token_forks(served):
    _, last = served.text(regex=r"[a-c]+,[d-f]+\.", max_chars=3, seed=4)
    texts = {served.text(resume_token=last.resume_token, seed=seed)[0] for seed in range(20)}
    assert len(texts) > 5
    assert all(re.fullmatch(r"[a-c]+,[d-f]+\.|[d-f]*\.|,[d-f]+\.", text) for text in texts)


def token_of(bundle, constraint, state, **sampling):
    """A token that no server has issued."""
    spec = StreamSpec(np.zeros(1, np.int64), 0, Sampling(**sampling), 5, 0, constraint=constraint)
    zeros = {name: np.zeros((bundle.layers, bundle.hidden), np.float32) for name, _ in bundle.states}
    return ResumeTokens([KEY], 0).seal(bundle, "other", spec, Snapshot(3, 0, zeros, automaton_state=state))


@pytest.mark.parametrize("state", [7, 8, 1000, 2**31, 2**32 - 1])
def test_a_state_that_the_constraint_lacks_is_refused(served, state):
    token = token_of(served.bundles["tiny"], packed(Pattern("regex", "[ab]{5}", None)), state)
    code, _, said = served.refusal(resume_token=token, max_chars=10)
    assert (code, said) == ("INVALID_ARGUMENT", "the resume token is at a state that its constraint does not have")
    assert served.text(resume_token=token, regex="ab", max_chars=10)[0] == "ab"
    assert len(served.text(resume_token=token, constraint=pb.Constraint(), max_chars=10)[0]) == 10


def test_states_at_the_end_are_taken(served):
    for state in (5, 6):  # the last, and that after a terminator
        token = token_of(served.bundles["tiny"], packed(Pattern("regex", "[ab]{5}", None)), state)
        text, last = served.text(resume_token=token, max_chars=10)
        assert (text, last.finish_reason, last.usage.matches) == ("", STOP, True)


@pytest.mark.parametrize(
    "constraint", [b"\xff\xff", packed(Pattern("regex", "(", None)), packed(Pattern("regex", "0", None))]
)
def test_a_constraint_of_a_token_that_cannot_be_used_is_an_invalid_token(served, constraint):
    token = token_of(served.bundles["tiny"], constraint, 0)
    code, field, said = served.refusal(resume_token=token, max_chars=10)
    assert (code, field) == ("INVALID_ARGUMENT", "")
    assert "the resume token" in said


# ---- for all expressions


@st.composite
def expressions(draw, depth=2):
    """Small regular expressions, most of which the model can match."""
    kind = draw(st.sampled_from("cdsagr" if depth else "cds"))
    match kind:
        case "c":
            return draw(st.sampled_from([*"abcxyz ,é", r"\.", r"\n", "the", "Q"]))
        case "d":
            return draw(st.sampled_from(["[a-d]", "[^a-y]", r"\w", ".", r"[\w.]", r"\S", r"[^\W\d]"]))
        case "s":
            return draw(st.sampled_from(["ab", "a ", "é,"]))
        case "a":
            return "|".join(draw(st.lists(expressions(depth - 1), min_size=1, max_size=3)))
        case "g":
            parts = [f"(?:{part})" for part in draw(st.lists(expressions(depth - 1), min_size=1, max_size=3))]
            return "".join(parts)
        case _:
            count = draw(st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{2,}", "*?", "+?", "??", "{1,2}?"]))
            return f"(?:{draw(expressions(depth - 1))}){count}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(pattern=expressions(), seed=st.integers(0, 2**64 - 1), most=st.integers(1, 40), cut=st.integers(1, 39))
def test_any_expression_is_met_whole_or_in_parts(served, pattern, seed, most, cut):
    text, last = served.text(regex=pattern, seed=seed, max_chars=most)
    check(pattern, text, last, most)
    head, middle = served.text(regex=pattern, seed=seed, max_chars=min(cut, most))
    assert text.startswith(head)
    if len(head) < most:
        tail, end = served.text(resume_token=middle.resume_token, max_chars=most - len(head))
        assert (head + tail, end.finish_reason, end.usage.matches) == (text, last.finish_reason, last.usage.matches)
