"""`Client.interact` and `AsyncClient.interact` against real servers."""

import asyncio
import json
import signal
import threading
from contextlib import ExitStack, aclosing

import grpc
import pytest
from servers import run_server, started, wait_until

from rill.client.aio import AsyncClient
from rill.client.errors import ServerError, SessionStateError
from rill.client.sync import Client

Code = grpc.StatusCode


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def text(pieces):
    return "".join(pieces)


async def joined(pieces):
    return "".join([piece async for piece in pieces])


def test_a_conversation_is_the_text_of_generate(client):
    """Fed, generated, changed and paused: what Generate makes of the same, token by token."""
    with client.interact(seed=7, temperature=0.9) as session:
        assert (session.seed, session.position, session.model_id) == (7, 0, client.models().models[0].model_id)
        beginning = session.resume_token
        fed = session.feed("To be")
        assert fed.chars == 5
        assert fed.logprob == pytest.approx(list(client.score("To be"))[-1].total.logprob)
        first = text(session.generate(max_chars=100))
        token = session.resume_token
        session.update(temperature=0.3, top_k=5)
        second = text(session.generate(max_chars=50, stop=["never"]))
        assert session.position == session.resume_position == 150
    assert first == text(client.generate("To be", resume_token=beginning, max_chars=100))
    assert first == text(client.generate("\nTo be", seed=7, temperature=0.9, max_chars=100))
    assert second == text(client.generate(resume_token=token, temperature=0.3, top_k=5, max_chars=50))


def test_pause_ends_the_iterator_after_what_was_made(client):
    with client.interact(seed=3) as session:
        pieces = session.generate(max_chars=0, chars_per_second=2000)
        made = next(pieces)
        threading.Timer(0.1, session.pause).start()
        made += text(pieces)
        assert session.position == len(made)
        for piece in session.generate(max_chars=0, chars_per_second=2000):
            made += piece
            session.pause()
        assert session.snapshot().position == len(made)
        made += text(session.generate(max_chars=10))
    assert made == text(client.generate(seed=3, max_chars=len(made)))


def test_a_pause_that_comes_too_late_changes_nothing(client):
    with client.interact(seed=3) as session:
        made = ""
        for _ in range(20):
            for piece in session.generate(max_chars=20):
                made += piece
                session.pause()
            session.pause()
    assert made == text(client.generate(seed=3, max_chars=len(made)))


def test_snapshots_in_the_midst_of_a_text(client):
    """From this thread and from others; each is a place of the text, and no character is lost meanwhile."""
    with client.interact(seed=5) as session:
        made, places = "", [session.snapshot()]

        def ask():
            places.extend(session.snapshot() for _ in range(5))

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for piece in session.generate(max_chars=0, chars_per_second=3000):
            made += piece
            if len(made) > 100 and not askers[0].ident:
                for asker in askers:
                    asker.start()
                places.append(session.snapshot())
            if len(places) == 17 and len(made) > max(place.position for place in places):
                session.pause()
        for asker in askers:
            asker.join()
    whole = text(client.generate(seed=5, max_chars=len(made)))
    assert made == whole
    for place in places:
        assert text(client.generate(resume_token=place.resume_token, max_chars=20)).startswith(
            whole[place.position :][:20]
        )


def test_an_iterator_left_early_pauses(client):
    with client.interact(seed=5) as session:
        for _ in session.generate(max_chars=0, chars_per_second=1000):
            break
        assert session.feed("a").chars == 1
        assert session.position == session.snapshot().position


def test_order_errors_change_nothing(client):
    session = client.interact()
    with pytest.raises(SessionStateError, match="with statement"):
        session.feed("a")
    with pytest.raises(ValueError, match="seed"):
        client.interact(seed=-1)
    with pytest.raises(TypeError, match="warmth"):
        client.interact(warmth=1)
    with client.interact(seed=5) as session:
        made = ""
        for piece in session.generate(max_chars=200, chars_per_second=2000):
            made += piece
            if session.position < 200:
                with pytest.raises(SessionStateError, match="generating"):
                    session.feed("a")
        assert made == text(client.generate(seed=5, max_chars=200))


def test_a_refused_action_ends_the_session_with_the_state_before_it(client):
    for refuse in (
        lambda session: session.feed("漢"),
        lambda session: list(session.generate(stop=[str(number) for number in range(33)])),
        lambda session: (session.update(logit_bias={"漢": 1.0}), session.feed("")),
    ):
        with client.interact(seed=5) as session:
            made = text(session.generate(max_chars=30))
            with pytest.raises(ServerError) as caught:
                refuse(session)
            assert caught.value.code is Code.INVALID_ARGUMENT
            with pytest.raises(ServerError):
                session.snapshot()
        made += text(client.generate(resume_token=session.resume_token, max_chars=30))
        assert made == text(client.generate(seed=5, max_chars=60))


def test_what_cannot_be_opened(client):
    for parameters, code in [
        ({"model": "nobody"}, Code.NOT_FOUND),
        ({"logit_bias": {"漢": 1.0}}, Code.INVALID_ARGUMENT),
        ({"resume_token": b"x"}, Code.INVALID_ARGUMENT),
    ]:
        with pytest.raises(ServerError) as caught, client.interact(**parameters):
            pass
        assert caught.value.code is code
    assert caught.value.reason == "RESUME_TOKEN_INVALID"
    with pytest.raises(ServerError) as caught, Client("127.0.0.1:1", retry_seconds=0).interact():
        pass
    assert caught.value.code is Code.UNAVAILABLE


def test_the_slot_is_free_after_the_with_statement(client):
    with client.interact():
        assert client.models().streams_running == 1
    wait_until(lambda: client.models().streams_running == 0)


def test_a_closed_session_says_so(client):
    with client.interact() as session:
        pieces = session.generate(max_chars=0, chars_per_second=100)
        next(pieces)
        threading.Timer(0.1, session.close).start()
        with pytest.raises(ServerError) as caught:
            list(pieces)
    assert caught.value.code is Code.CANCELLED


def test_the_next_address_and_a_timeout(server):
    with Client(f"127.0.0.1:1,{server.target}") as client, client.interact(timeout=0.5) as session:
        with pytest.raises(ServerError) as caught:
            list(session.generate(max_chars=0, chars_per_second=10))
        assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_asyncio_has_the_same(server, client):
    async with AsyncClient(f"127.0.0.1:1,{server.target}") as asynchronous:
        async with asynchronous.interact(seed=7, temperature=0.9) as session:
            assert (await session.feed("To be")).chars == 5
            made = await joined(session.generate(max_chars=100))
            async for piece in session.generate(max_chars=0, chars_per_second=2000):
                made += piece
                if len(made) > 150:
                    session.pause()
                if len(made) > 120:
                    assert (await session.snapshot()).position >= len(made)
            assert session.position == len(made)
            session.update(seed=8)
            async with aclosing(session.stream(max_chars=0, chars_per_second=1000)) as messages:
                async for _ in messages:
                    break
            assert (await session.snapshot()).position > len(made)
        with pytest.raises(ServerError, match="closed"):
            await session.snapshot()
        assert made == text(client.generate("\nTo be", seed=7, temperature=0.9, max_chars=len(made)))


async def test_cancelling_who_waits_does_not_end_an_asyncio_session(server):
    async with AsyncClient(server.target) as client, client.interact(seed=7) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(joined(session.generate(max_chars=0, chars_per_second=1)), 0.3)
        assert (await session.feed("a")).chars == 1


async def test_a_refused_update_is_told_in_asyncio_too(server):
    async with AsyncClient(server.target) as client, client.interact(seed=7) as session:
        await session.feed("abc")
        session.update(logit_bias={"漢": 1.0})
        with pytest.raises(ServerError) as caught:
            await session.feed("")
        # gRPC's asyncio half may lose the reason, if the next action was on its way.
        assert caught.value.code in (Code.INVALID_ARGUMENT, Code.UNAVAILABLE)
        async with client.interact(resume_token=session.resume_token) as again:
            assert (await again.feed("d")).chars == 1


# Servers that go away.


@pytest.fixture
def pair(tiny_folder, tmp_path):
    """Two servers with one key, which drain at once."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    arguments = ("--resume-key-file", key, "--drain-seconds", 0)
    with run_server(tiny_folder, *arguments) as one, run_server(tiny_folder, *arguments) as other:
        yield one, other


def end(server, number):
    server.process.send_signal(number)
    server.process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
def test_a_session_continues_at_the_next_address(pair, client, number):
    """While it is idle, and in the middle of a text."""
    interrupted, (one, other) = [], pair
    with (
        Client(f"{one.target},{other.target}") as both,
        both.interact(seed=7, temperature=0.9, on_interrupted=interrupted.append) as session,
    ):
        session.feed("To be")
        first = text(session.generate(max_chars=10))
        session.update(temperature=0.5)
        pieces = session.generate(max_chars=3000, chars_per_second=4000)
        second = next(pieces)
        while len(second) < 1500:
            second += next(pieces)
        end(one, number)
        second += text(pieces)
        assert session.position == 3010
        assert session.feed("or not").chars == 6
        third = text(session.generate(max_chars=50))
    assert [error.code for error in interrupted] == [Code.UNAVAILABLE]
    assert first + second + third == undisturbed(client)


def undisturbed(client):
    with client.interact(seed=7, temperature=0.9) as session:
        session.feed("To be")
        made = text(session.generate(max_chars=10))
        session.update(temperature=0.5)
        made += text(session.generate(max_chars=3000))
        session.feed("or not")
        return made + text(session.generate(max_chars=50))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["drained", "killed"])
async def test_an_asyncio_session_continues_at_the_next_address(pair, client, number):
    one, other = pair
    async with (
        AsyncClient(f"{one.target},{other.target}") as both,
        both.interact(seed=7, temperature=0.9) as session,
    ):
        await asyncio.to_thread(end, one, number)
        await session.feed("To be")
        made = await joined(session.generate(max_chars=10))
        session.update(temperature=0.5)
        made += await joined(session.generate(max_chars=3000))
        await session.feed("or not")
        made += await joined(session.generate(max_chars=50))
    assert made == undisturbed(client)


def test_stops_end_with_their_generation(pair, client):
    one, other = pair
    with Client(f"{one.target},{other.target}") as both, both.interact(seed=7) as session:
        whole = text(client.generate(seed=7, max_chars=200))
        stop = whole[50:53]
        made = text(session.generate(max_chars=0, stop=[stop]))
        assert made == whole[: whole.index(stop)]
        end(one, signal.SIGKILL)
        made += text(session.generate(max_chars=200 - len(made)))
        assert made == whole


def test_a_session_waits_for_its_server_to_be_back(tiny_folder, client, tmp_path):
    """Killed in the middle of a text, and while it is paused; other threads ask for snapshots all the while."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    with ExitStack() as stack:
        first = started(tiny_folder, key)
        server = first.__enter__()
        session = stack.enter_context(stack.enter_context(server.client()).interact(seed=7))
        places = []
        made = ""
        for piece in session.generate(max_chars=0, chars_per_second=2000):
            made += piece
            if len(made) > 300 and first:
                asker = threading.Thread(target=lambda: places.extend(session.snapshot() for _ in range(5)))
                asker.start()
                first.__exit__(None, None, None)
                first = None
                stack.enter_context(started(tiny_folder, key, server.port))
            if len(made) > 3000:
                session.pause()
        asker.join()
        assert session.snapshot().position == len(made)
    whole = text(client.generate(seed=7, max_chars=len(made)))
    assert made == whole
    assert len(places) == 5


def test_a_token_that_no_server_takes_ends_the_session_with_it(tiny_folder):
    with run_server(tiny_folder) as one, run_server(tiny_folder) as other:
        with Client(f"{one.target},{other.target}") as client, client.interact(seed=7) as session:
            session.feed("To be")
            end(one, signal.SIGKILL)
            with pytest.raises(ServerError) as caught:
                session.feed("or not")
        assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
        assert caught.value.resume_token == session.resume_token


@pytest.mark.parametrize("is_idle", [True, False])
async def test_without_retries_a_session_ends_with_its_server(tiny_folder, is_idle):
    with run_server(tiny_folder, "--drain-seconds", 0) as drained:
        async with AsyncClient(drained.target, retry_seconds=0) as client, client.interact(seed=7) as session:
            await session.feed("To be")
            made = await joined(session.generate(max_chars=10))
            pieces = session.generate(max_chars=0, chars_per_second=200)
            if is_idle:
                await asyncio.to_thread(end, drained, signal.SIGTERM)
            else:
                made += await anext(pieces)
                drained.process.send_signal(signal.SIGTERM)
            error = None
            try:
                async for piece in pieces:
                    made += piece
            except ServerError as raised:
                error = raised
            assert error.code is Code.UNAVAILABLE
            assert session.resume_position == len(made)
            assert error.resume_token == session.resume_token


def test_close_and_pause_end_the_wait_for_a_server(tiny_folder):
    with run_server(tiny_folder) as server, server.client() as client, client.interact(seed=7) as session:
        pieces = session.generate(max_chars=0, chars_per_second=1000)
        made = next(pieces)
        server.stop(signal.SIGKILL)
        threading.Timer(0.5, session.pause).start()
        made += text(pieces)
        assert session.position == len(made)
        threading.Timer(0.5, session.close).start()
        with pytest.raises(ServerError, match="closed"):
            session.feed("a")


def test_ctrl_c_ends_a_session_that_waits(client):
    with client.interact(seed=7) as session:
        threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            text(session.generate(max_chars=0, chars_per_second=5))
        with pytest.raises(ServerError, match="closed"):
            session.feed("a")


def ends(log):
    """Status and reason of each call, by its id."""
    calls = [json.loads(line) for line in log.splitlines() if '"message": "call"' in line]
    return {call["id"]: (call["code"], call["end"]) for call in calls}


async def test_a_session_that_ends_normally_is_ok_in_the_log(tiny_folder):
    """One that is left while it generates is paused first; one whose call the client cancels is not OK."""
    with run_server(tiny_folder, "--log-format", "json") as running:
        with running.client() as client:
            with client.interact(request_id="unused"):
                pass
            with client.interact(request_id="fed") as session:
                session.feed("To be")
            with client.interact(request_id="read") as session:
                text(session.generate(max_chars=20))
            with client.interact(request_id="left") as session:
                next(session.generate(max_chars=0))
            with client.interact(request_id="raised") as session, pytest.raises(ZeroDivisionError):
                raise ZeroDivisionError
            with client.interact(request_id="closed") as session:
                pieces = session.generate(max_chars=0, chars_per_second=20)
                next(pieces)
                session.close()
        async with AsyncClient(running.target) as client:
            async with client.interact(request_id="async") as session:
                await session.feed("To be")
                await joined(session.generate(max_chars=20))
            async with (
                client.interact(request_id="async-closed") as session,
                aclosing(session.generate(max_chars=0, chars_per_second=20)) as pieces,
            ):
                await anext(pieces)
                await session.close()
        _, log = running.stop()
    assert {name: end for name, end in ends(log).items() if "closed" not in name} == dict.fromkeys(
        ("unused", "fed", "read", "left", "raised", "async"), ("OK", "complete")
    )
    assert {end for name, end in ends(log).items() if "closed" in name} == {("CANCELLED", "cancelled")}


async def test_an_idle_session_gives_its_slot_back_and_continues(tiny_folder):
    """Nothing is asked of it for a while: its slot is free, and the next action opens it again where it was."""
    arguments = ("--idle-seconds", 0.3, "--max-streams", 1, "--log-format", "json")

    def idle(running):
        with running.client() as other:
            wait_until(lambda: other.models().streams_running == 0)

    with run_server(tiny_folder, *arguments) as running:
        with running.client() as client:
            whole = text(client.generate("\nTo be", seed=7, max_chars=200))
            with client.interact(seed=7, request_id="sync") as session:
                session.feed("To be")
                made = text(session.generate(max_chars=100))
                idle(running)
                made += text(session.generate(max_chars=100))
                idle(running)
                assert session.feed("a").chars == 1
            assert made == whole
        async with AsyncClient(running.target) as client, client.interact(seed=7, request_id="async") as session:
            await session.feed("To be")
            made = await joined(session.generate(max_chars=100))
            await asyncio.to_thread(idle, running)
            made += await joined(session.generate(max_chars=100))
            assert made == whole
            # A text that is being read is not idle, however slow it is.
            assert len(await joined(session.generate(max_chars=10, chars_per_second=20))) == 10
        _, log = running.stop()
    lines = [json.loads(line) for line in log.splitlines()]
    codes = [(line["id"], line["code"], line["end"]) for line in lines if line["message"] == "call"]
    sessions = [code for code in codes if code[0] in ("sync", "async")]
    idle_end = ("ABORTED", "session_idle")
    assert sessions == [
        *[("sync", *idle_end)] * 2,
        ("sync", "OK", "complete"),
        ("async", *idle_end),
        ("async", "OK", "complete"),
    ]
