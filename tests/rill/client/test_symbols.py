"""Models with symbols of several characters: servers die, and every symbol is seen once."""

import asyncio
import signal
from contextlib import contextmanager
from itertools import pairwise

import pytest
from servers import run_server, started

from rill import AsyncClient, Client
from rill.client.requests import generate_request
from rill.client.symbols import symbol_count, symbols_of

ENDLESS = {"<end>": float("-inf")}
PROMPT = "c1cc[nH]Cl"


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture(scope="module")
def standby(molecule_folder, key):
    """The server that stays."""
    with started(molecule_folder, key, end=signal.SIGTERM) as server:
        yield server


def kill(server):
    server.process.kill()
    server.process.wait(20)


def one_text(messages):
    """The symbols of a text, which counts them without a gap; at the end its reason."""
    assert all(message.position == before.position + symbol_count(before) for before, message in pairwise(messages))
    begins = [message.text_position + len(message.text) for message in messages]
    assert begins[:-1] == [message.text_position for message in messages[1:]]
    symbols = [symbol for message in messages for symbol in symbols_of(message.text, message.symbol_lengths)]
    entries = [entry.character for message in messages for entry in message.logprobs]
    assert entries == symbols
    return symbols, messages[-1].finish_reason


def test_texts_and_sessions_go_on_when_their_server_is_killed(molecule_folder, standby, key):
    """In a text without an end, in one that ends by itself, and in a session: behind a text that a stop ended, whose
    token would bring the stop back.
    """
    asked = generate_request(PROMPT, max_chars=900, seed=5, logit_bias=ENDLESS, logprobs=1, resume_every=50)
    with standby.client() as client:
        whole = one_text(list(client.stream(asked)))
        texts = ((seed, "".join(client.generate(PROMPT, max_chars=0, seed=seed))) for seed in range(100))
        seed, ended = next((seed, text) for seed, text in texts if len(text) > 60)
        with in_session(client) as (_, session_text):
            undisturbed = list(session_text)
        scored = scores(list(client.score(PROMPT * 3000, include_end=True, top_logprobs=0)))
    assert len(whole[0]) == 900 < len("".join(whole[0]))
    assert any("Cl" in symbols for symbols in undisturbed)
    asked.chars_per_second = 2000
    with (
        run_server(molecule_folder, "--resume-key-file", key) as server,
        Client(f"{server.target},{standby.target}") as client,
        in_session(client) as (session, session_text),
    ):
        messages = client.stream(asked)
        taken = [next(messages) for _ in range(5)]
        text = client.generate(PROMPT, max_chars=0, seed=seed, chars_per_second=200, resume_every=5)
        made = next(text) + next(text)
        pieces = [next(session_text) for _ in range(5)]
        score = client.score(PROMPT * 3000, include_end=True, top_logprobs=0)
        parts = [next(score) for _ in range(3)]
        kill(server)
        assert scores(parts + list(score)) == scored
        assert one_text(taken + list(messages)) == whole
        assert made + "".join(text) == ended
        assert (text.finish_reason, text.text_position) == ("STOP", len(ended))
        symbols = [symbol for piece in [*pieces, *session_text] for symbol in piece]
        assert symbols == [symbol for piece in undisturbed for symbol in piece]
        assert session.position == len(symbols)
        again = client.generate(resume_token=text.resume_token)
        assert ("".join(again), again.finish_reason, again.text_position) == ("", "STOP", len(ended))


def scores(messages):
    """The symbols of a scored text, and their log-probabilities."""
    assert messages[-1].total.chars == 18_001
    assert all(message.position == before.position + len(before.logprobs) for before, message in pairwise(messages))
    symbols = [entry.character for message in messages for entry in message.top]
    assert symbols == [*["c", "1", "c", "c", "[nH]", "Cl"] * 3000, "<end>"]
    return symbols, [logprob for message in messages for logprob in message.logprobs]


@contextmanager
def in_session(client):
    """A session, and its text as the symbols of each piece."""
    with client.interact(seed=5, logit_bias=ENDLESS) as session:
        assert session.feed(PROMPT).chars == 6

        def pieces():
            text = session.generate(max_chars=0, stop="Cl")
            yield [symbol for _ in text for symbol in text.symbols]
            assert text.finish_reason == "STOP"
            text = session.generate(max_chars=300, chars_per_second=1000)
            for piece in text:
                assert "".join(text.symbols) == piece
                yield text.symbols
            assert (text.position, text.text_position) == (session.position, session.text_position)
            assert text.finish_reason == "LENGTH"

        yield session, pieces()


@pytest.mark.long
async def test_a_text_begins_again_where_no_server_knows_its_tokens(molecule_folder, standby):
    """From the prompt and the seed; the server is killed at any moment."""
    asked = generate_request(PROMPT, max_chars=900, logit_bias=ENDLESS, logprobs=0, chars_per_second=3000)
    for moment in range(1, 900, 199):
        with run_server(molecule_folder) as server:
            async with AsyncClient(f"{server.target},{standby.target}") as client:
                messages = []
                async for message in client.stream(asked):
                    messages.append(message)
                    if server.process.poll() is None and message.position >= moment:
                        await asyncio.to_thread(kill, server)
        made = one_text(messages)
        again = generate_request(PROMPT, max_chars=900, logit_bias=ENDLESS, logprobs=0, seed=messages[0].seed)
        with standby.client() as client:
            assert one_text(list(client.stream(again))) == made
