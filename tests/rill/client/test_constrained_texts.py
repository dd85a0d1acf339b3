"""Texts that must match, from real servers: alone, continued from tokens, in sessions, and when servers are killed."""

import re
import signal
from contextlib import contextmanager

import grpc
import pytest
import regex
from servers import run_server

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.sync import Client

WORDS = "(?:[A-Z][a-z]{1,9}(?:, [a-z]{1,9}){0,3}[.]){1,}"  # of the letters that the model has; never ends by itself
CODE = "[a-f]{4}(?: [A-F]{3}){8}"
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


def text(pieces):
    return "".join(pieces)


def test_a_text_matches_and_says_so(server):
    with server.client() as client:
        made = client.generate("To be", regex=CODE, seed=7)
        assert made.matches is None
        whole = text(made)
        assert re.fullmatch(CODE, whole)
        assert (made.finish_reason, made.matches, made.usage.generated_chars) == ("STOP", True, len(whole))
        cut = client.generate("To be", regex=CODE, seed=7, max_chars=10)
        assert text(cut) == whole[:10]
        assert (cut.finish_reason, cut.matches) == ("LENGTH", False)
        assert text(client.generate(choices=iter(["Ay", "No"]), seed=3)) in ("Ay", "No")
        free = client.generate(max_chars=5)
        assert (len(text(free)), free.matches) == (5, None)


async def test_asyncio_has_the_same(server):
    with server.client() as client:
        whole = text(client.generate("To be", regex=CODE, seed=7))
    async with AsyncClient(server.target) as client:
        made = client.generate("To be", regex=CODE, seed=7)
        assert "".join([piece async for piece in made]) == whole
        assert (made.finish_reason, made.matches) == ("STOP", True)
        async with client.interact(regex=CODE, seed=7) as session:
            first = session.generate(max_chars=6)
            made = "".join([piece async for piece in first])
            rest = session.generate()
            assert re.fullmatch(CODE, made + "".join([piece async for piece in rest]))
            assert (first.matches, rest.matches) == (False, True)
            session.update(choices=["Ay"])
            assert "".join([piece async for piece in session.generate()]) == "Ay"


def test_what_a_token_continues(server):
    """Nothing: its constraint, from where the text is. A constraint: begins anew. Unconstrained: none."""
    with server.client() as client:
        whole = text(client.generate("To be", regex=CODE, seed=7))
        for cut in range(1, len(whole)):
            first = client.generate("To be", regex=CODE, seed=7, max_chars=cut)
            made = text(first)
            rest = client.generate(resume_token=first.resume_token)
            assert made + text(rest) == whole
            assert (rest.finish_reason, rest.matches) == ("STOP", True)
        assert re.fullmatch(CODE, text(client.generate(resume_token=first.resume_token, regex=CODE)))
        free = client.generate(resume_token=first.resume_token, unconstrained=True, max_chars=60)
        assert (len(text(free)), free.matches) == (60, None)
        again = client.generate(resume_token=rest.resume_token)
        assert (text(again), again.finish_reason, again.matches) == ("", "STOP", True)
        other = client.generate(resume_token=rest.resume_token, choices=["Ay", "No"])
        assert text(other) in ("Ay", "No")


def test_a_session_goes_on_in_its_constraint_until_an_update(server):
    with server.client() as client, client.interact(regex=CODE, seed=7) as session:
        session.feed("To be")
        made = text(session.generate(max_chars=3))
        session.feed(", or not")  # does not count
        session.update(temperature=0.5)
        rest = session.generate()
        made += text(rest)
        assert re.fullmatch(CODE, made)
        assert (rest.finish_reason, rest.matches) == ("STOP", True)
        assert text(session.generate()) == ""
        session.update(regex=CODE)
        assert re.fullmatch(CODE, text(session.generate()))
        session.update(unconstrained=True)
        free = session.generate(max_chars=50)
        assert (len(text(free)), free.matches) == (50, None)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"regex": "a(?=b)"}, "sampling.constraint.regex"),
        ({"choices": ["漢"]}, "sampling.constraint.choices"),
        ({"regex": "a+", "terminator": "xyz"}, "sampling.constraint.terminator"),
    ],
)
def test_what_a_server_refuses(server, parameters, field):
    with server.client() as client:
        for refused in (client.generate(**parameters), client.interact(**parameters)):
            with pytest.raises(ServerError) as caught:
                next(refused) if hasattr(refused, "__next__") else refused.__enter__()
            assert (caught.value.code, caught.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        with client.interact() as session:
            session.update(**parameters)
            with pytest.raises(ServerError) as caught:
                text(session.generate(max_chars=3))
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


# Servers that go away.


@contextmanager
def replicas(folder, tmp_path, count=2):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    arguments = (folder, "--resume-key-file", key, "--drain-seconds", 0)
    with run_server(*arguments) as one, run_server(*arguments) as other:
        yield one, other


def end(server, number):
    server.process.send_signal(number)
    server.process.wait(20)


def interrupted(pieces, server, number, after):
    """The whole text, whose server is ended after so many characters."""
    made = ""
    for piece in pieces:
        made += piece
        if len(made) >= after and server.process.poll() is None:
            end(server, number)
    assert server.process.poll() is not None, "the server was ended in the middle of the text"
    return made


@pytest.mark.long
@pytest.mark.parametrize("every", [0, 1, 64])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_text_goes_on_in_its_constraint_at_another_server(tiny_folder, tmp_path, server, number, every):
    """Without a token from its server, it is generated again from its beginning; with one, from there."""
    given = {"prompt": "To be", "regex": WORDS, "terminator": "", "seed": 7, "max_chars": 2000, "resume_every": every}
    with server.client() as client:
        whole = text(client.generate(**given))
    assert regex.fullmatch(WORDS, whole, partial=True)
    with replicas(tiny_folder, tmp_path) as (one, other), Client(f"{one.target},{other.target}") as both:
        made = both.generate(**given, chars_per_second=4000, logprobs=1)
        assert interrupted(made, one, number, 700) == whole
        assert made.finish_reason == "LENGTH"
        assert made.matches == bool(re.fullmatch(WORDS, whole))
        assert len(made.logprobs) == 2000


@pytest.mark.parametrize(
    "change", [{}, pytest.param({"regex": f"{CODE}(?:, [a-z]{{5}}){{120}}"}, marks=pytest.mark.long)]
)
def test_a_text_from_a_token_survives_kill_9(tiny_folder, tmp_path, change):
    """It goes on in the constraint of its token, or in the one that has replaced it there."""
    with replicas(tiny_folder, tmp_path) as (one, other):
        with one.client() as client:
            begun = client.generate("To be", regex=WORDS, terminator="", seed=7, max_chars=33)
            head = text(begun)
        given = {"resume_token": begun.resume_token, "max_chars": 700, "resume_every": 100, **change}
        with other.client() as client:
            whole = text(client.generate(**given))
        with Client(f"{one.target},{other.target}") as both:
            assert interrupted(both.generate(**given, chars_per_second=3000), one, signal.SIGKILL, 250) == whole
    assert regex.fullmatch(change.get("regex", WORDS), whole if change else head + whole, partial=True)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_session_goes_on_in_its_constraint_at_another_server(tiny_folder, tmp_path, server, number):
    def conversation(client, end_here):
        with client.interact(seed=7, regex=WORDS, terminator="", temperature=0.9) as session:
            session.feed("To be")
            yield text(session.generate(max_chars=41))
            session.feed("or not")
            yield end_here(session.generate(max_chars=1500, chars_per_second=3000))
            yield text(session.generate(max_chars=100))
            session.update(regex=CODE)
            yield text(session.generate())
            yield text(session.generate())
            session.update(choices=["Ay.", "No."])
            yield text(session.generate())

    with server.client() as client:
        expected = list(conversation(client, text))
    assert regex.fullmatch(WORDS, "".join(expected[:3]), partial=True)
    assert re.fullmatch(CODE, expected[3])
    assert (expected[4], expected[5] in ("Ay.", "No.")) == ("", True)
    with replicas(tiny_folder, tmp_path) as (one, other), Client(f"{one.target},{other.target}") as both:
        assert list(conversation(both, lambda pieces: interrupted(pieces, one, number, 700))) == expected
