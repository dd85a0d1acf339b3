"""Stop strings: the finder against a simple reference, and streams of a real server that end with them."""

import random

import grpc
import pytest
from calls import refusal
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_texts import continuation, first_stop, reference, undecided

from rill.serve.engine.stops import StopFinder
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationStub

# The finder


def texts(alphabet):
    return st.tuples(
        st.lists(st.text(alphabet, min_size=1, max_size=6), min_size=1, max_size=4),
        st.lists(st.text(alphabet, max_size=5), max_size=12),
    )


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(case=texts("ab") | texts("abc"), include=st.booleans())
@example((["ab", "b"], ["a", "b"]), False)
@example((["b", "ab"], ["a", "b"]), True)
@example((["aab"], ["a", "a", "a", "b"]), False)
def test_all_text_is_released_that_cannot_become_a_stop(case, include):
    stops, pieces = case
    finder, known, out = StopFinder(stops, include), "", ""
    for piece in pieces:
        known += piece
        new, stopped = finder.feed(piece)
        out += new
        found = first_stop(known, stops)
        assert stopped is (found is not None)
        if found:
            start, end = found
            assert out == known[: end if include else start]
            return
        assert out == known[: undecided(known, stops)]
        assert finder.partial_stop == ""
    assert out + finder.flush() == known
    assert finder.flush() == ""
    assert finder.partial_stop == known[undecided(known, stops) :]


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(case=texts("ab") | texts("abc"), include=st.booleans(), cuts=st.sets(st.integers(0, 11)))
@example((["aab"], ["aa", "a", "b"]), False, {0, 1})
@example((["abab", "ba"], ["ab", "ab"]), False, {0})
def test_a_stop_is_found_across_resumes(case, include, cuts):
    """After some pieces the held back text is released, because the text was complete, and another finder continues."""
    stops, pieces = case
    finder, known, out = StopFinder(stops, include), "", ""
    for at, piece in enumerate(pieces):
        known += piece
        before = len(out)
        new, stopped = finder.feed(piece)
        out += new
        found = first_stop(known, stops)
        assert stopped is (found is not None)
        if found:
            start, end = found
            assert out == known[: end if include else max(start, before)]
            if not include:  # resumed, it ends there again, and nothing more goes out
                again = StopFinder(stops, include, finder.partial_stop)
                assert again.feed(known[len(out) : end]) == ("", True)
            return
        if at in cuts:
            out += finder.flush()
            assert out == known
            finder = StopFinder(stops, include, finder.partial_stop)
            assert finder.partial_stop == known[undecided(known, stops) :]


# Streams


@pytest.fixture(scope="module")
def generate(server):
    """The messages of a call with a seed of 42, unless given another."""
    with grpc.insecure_channel(server.target) as channel:
        stub = TextGenerationStub(channel)

        def messages(seed=42, parameters=None, **request):
            sampling = pb.Sampling(seed=seed, **(parameters or {})) if seed is not None else pb.Sampling()
            return list(stub.Generate(pb.GenerateRequest(sampling=sampling, **request)))

        yield messages


@pytest.fixture(scope="module")
def text(tiny):
    """The text that follows "To be", as long as nothing stops it."""
    return reference(tiny, "To be", 42, 800)


def joined(messages):
    return "".join(message.text for message in messages)


def finish(messages):
    """The finish reason, after checks that hold for any end."""
    last = messages[-1]
    position = messages[0].position
    for message in messages:
        assert message.position == position
        assert message.text or message is last
        position += len(message.text)
    assert last.resume_token
    assert last.usage.generated_chars == len(joined(messages))
    return pb.FinishReason.Name(last.finish_reason).removeprefix("FINISH_REASON_")


def stop_at(start, length, text):
    """A stop string that the text has at `start` and not before."""
    stop = text[start : start + length]
    while text.index(stop) != start:
        start += 1
        stop = text[start : start + length]
    return start, stop


@pytest.mark.parametrize("include", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("length", [2, 5, 60, 600])
def test_the_text_ends_before_or_after_the_stop(generate, text, length, include):
    start, stop = stop_at(137, length, text)
    for every in (0, 1, 50):
        messages = generate(prompt="To be", stop=[stop], include_stop=include, max_chars=5000, resume_every=every)
        assert joined(messages) == text[: start + length * include]
        assert finish(messages) == "STOP"


def test_stops_of_all_kinds(generate, text):
    """Some are in the text, some almost; limits cut some off."""
    chance = random.Random(3)
    ends = set()
    for _ in range(60):
        at, limit = chance.randrange(1, 500), chance.randrange(1, 700)
        stops = [text[at : at + chance.choice([2, 3, 9, 60])]]
        near = [text[i : i + chance.randrange(1, 60)] + "Q!" for i in chance.sample(range(500), chance.randrange(5))]
        stops = chance.sample([*stops, *near, stops[0][1:] + "é"], len(near) + 2)
        include = chance.random() < 0.5
        messages = generate(
            prompt="To be", stop=stops, include_stop=include, max_chars=limit, resume_every=chance.choice([0, 1, 7])
        )
        found = first_stop(text[:limit], stops)
        expected = text[: found[include]] if found else text[:limit]
        assert joined(messages) == expected
        ends.add(finish(messages))
        assert finish(messages) == ("STOP" if found else "LENGTH")
    assert ends == {"STOP", "LENGTH"}


def test_of_several_stops_the_first_to_be_complete_ends_the_text(generate, text):
    long, short = text[20:60], text[50:55]  # the short one is complete first, within the long one
    assert joined(generate(prompt="To be", stop=[long, short], max_chars=300)) == text[: text.index(short)]
    inner = text[55:60]  # complete at the same time
    if inner not in text[:59]:
        assert joined(generate(prompt="To be", stop=[inner, long], max_chars=300)) == text[:20]


def test_the_very_first_character_may_be_a_stop(generate, text):
    (message,) = generate(prompt="To be", stop=[text[0]], max_chars=300)
    assert (message.text, message.position, message.seed) == ("", 0, 42)
    assert finish([message]) == "STOP"
    (message,) = generate(prompt="To be", stop=[text[0]], include_stop=True)
    assert message.text == text[0]
    assert finish([message]) == "STOP"


def test_stops_are_not_looked_for_in_the_prompt(generate, tiny):
    """Neither those inside it nor those that begin in it."""
    for prompt in ("Zebra", "ab"):
        free = reference(tiny, prompt, 42, 200)
        stops = [prompt, prompt[-1] + free[:3]]
        assert not any(stop in free for stop in stops)
        messages = generate(prompt=prompt, stop=stops, max_chars=200)
        assert joined(messages) == free
        assert finish(messages) == "LENGTH"


@pytest.mark.parametrize("include", [False, True], ids=["before", "after"])
def test_a_stop_just_at_the_limit(generate, text, include):
    start, stop = stop_at(40, 8, text)
    end = start + 8
    request = {"prompt": "To be", "stop": [stop], "include_stop": include}
    messages = generate(**request, max_chars=end)
    assert joined(messages) == text[: end if include else start]
    assert finish(messages) == "STOP"

    # One character less: all of it is wanted, and the stop goes on in the next call.
    messages = generate(**request, max_chars=end - 1)
    assert joined(messages) == text[: end - 1]
    assert finish(messages) == "LENGTH"
    rest = generate(seed=None, resume_token=messages[-1].resume_token, max_chars=100)
    assert joined(rest) == text[end - 1 : end if include else end - 1]
    assert rest[-1].position == end - 1
    assert finish(rest) == "STOP"
    if not include:  # its token still knows what had begun
        again = generate(seed=None, resume_token=rest[-1].resume_token, max_chars=100)
        assert (joined(again), again[-1].position, finish(again)) == ("", end - 1, "STOP")

    # In pieces of one character.
    got, token = "", messages[-1].resume_token
    messages = generate(**request, max_chars=start + 3)
    while True:
        got += joined(messages)
        if finish(messages) == "STOP":
            break
        messages = generate(seed=None, resume_token=messages[-1].resume_token, max_chars=1)
    assert got == text[: end if include else end - 1]

    # A prompt, or other stops, end what had begun.
    if text[end - 1] not in stop[:-1]:
        other = joined(generate(seed=None, resume_token=token, stop=["漢" * 9], max_chars=50))
        assert other == text[end - 1 : end + 49]


def test_the_token_of_a_stopped_stream_is_at_the_end_of_its_text(generate, tiny, text):
    start, stop = stop_at(90, 12, text)
    for include in (False, True):
        messages = generate(prompt="To be", stop=[stop], include_stop=include, max_chars=5000)
        token, at = messages[-1].resume_token, start + 12 * include
        rest = generate(seed=None, resume_token=token, stop=["never in it"], max_chars=300)
        assert rest[0].position == at
        assert joined(rest) == text[at : at + 300]
        assert include or joined(rest).startswith(stop)
        # With a prompt beside the token, that is read next.
        rest = generate(seed=None, resume_token=token, prompt="Who", stop=["never in it"], max_chars=50)
        assert joined(rest) == continuation(tiny, "To be" + text[:at] + "Who", 42, at, 50)
    # Its own stops again: the same end again.
    token = generate(prompt="To be", stop=[stop], max_chars=5000)[-1].resume_token
    (again,) = generate(seed=None, resume_token=token, max_chars=300)
    assert (again.text, again.position) == ("", start)
    assert finish([again]) == "STOP"


def test_streams_with_and_without_stops_run_together(server, tiny):
    with grpc.insecure_channel(server.target) as channel:
        stub, calls = TextGenerationStub(channel), []
        for seed in range(40):
            parameters = [{}, {"top_p": 0.8}, {"top_k": 5}, {"temperature": 0.4}][seed % 4]
            whole = reference(tiny, "To be", seed, 400, **parameters)
            at = 10 + 9 * seed
            stops = [] if seed % 3 == 0 else [whole[at : at + 7], whole[5:40] + "Q"]
            found = first_stop(whole, stops)
            request = pb.GenerateRequest(
                prompt="To be",
                max_chars=400,
                stop=stops,
                resume_every=seed % 5,
                logprobs=3 if seed % 7 == 0 else None,
                sampling=pb.Sampling(seed=seed, **parameters),
            )
            calls.append((stub.Generate(request), whole[: found[0]] if found else whole))
        for call, expected in calls:
            assert joined(call) == expected


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ([""], "at least one character"),
        (["a", ""], "at least one character"),
        ([f"{number}" for number in range(33)], "33 stop strings; the limit is 32"),
        (["a" * 10_001], "more than 10000 characters"),
        ([chr(ord("A") + number) * 5_001 for number in range(2)], "more than 10000 characters"),
    ],
    ids=["empty", "one empty", "33", "long", "long together"],
)
def test_invalid_stops_are_refused(server, stops, message):
    with grpc.insecure_channel(server.target) as channel:
        error, details = refusal(TextGenerationStub(channel).Generate(pb.GenerateRequest(stop=stops)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.details()
    (violation,) = details[BadRequest].field_violations
    assert violation.field == "stop"


def test_as_many_stops_as_long_as_allowed(generate, text):
    for stops in (
        ["漢" * 10_000],
        [text[:100] * 50 + "Q"],
        [f"{number:02}" for number in range(32)],
        ["the same one"] * 40,
        ["\0", "😀"],
    ):
        messages = generate(prompt="To be", stop=stops, max_chars=100)
        assert joined(messages) == text[:100]
        assert finish(messages) == "LENGTH"
