"""What `generate`, `stream` and `score` return: pieces, and all that the server said about them."""

import asyncio
import gc
import json
import threading
from contextlib import aclosing, closing

import grpc
import pytest
from servers import run_server, wait_until

from rill import AsyncClient, AsyncTextStream, Client, Security, ServerError, TextStream
from rill.client import security
from rill.v1 import rill_pb2 as pb

ID = "order-66"


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def is_idle(client):
    return client.models().streams_running == 0


def test_a_text_knows_what_the_server_said(client):
    text = client.generate("To be", max_chars=60, logprobs=2, resume_every=20, request_id=ID)
    assert isinstance(text, TextStream)
    assert (text.seed, text.finish_reason, text.usage, text.resume_token, text.logprobs) == (None, None, None, b"", [])
    first = next(text)
    assert text.seed is not None
    assert (text.finish_reason, text.usage, text.position) == (None, None, len(first))
    assert "".join(entry.character for entry in text.logprobs) == first
    whole = first + "".join(text)
    assert len(whole) == text.position == text.resume_position == 60
    assert "".join(entry.character for entry in text.logprobs) == whole
    assert [len(entry.alternatives) for entry in text.logprobs] == [2] * 60
    assert (text.finish_reason, text.usage.generated_chars, text.usage.prompt_chars) == ("LENGTH", 60, 5)
    assert text.request_id == ID
    assert whole == "".join(client.generate("To be", max_chars=60, seed=text.seed))
    more = client.generate(resume_token=text.resume_token, max_chars=10)
    assert "".join(more) == "".join(client.generate("To be", max_chars=70, seed=text.seed))[60:]
    assert (more.seed, more.position) == (text.seed, 70)
    assert next(more, "over") == "over"


def test_a_stop_is_said(client):
    whole = "".join(client.generate(max_chars=100, seed=1))
    text = client.generate(max_chars=100, seed=1, stop=whole[50:53])
    assert "".join(text) == whole[: whole.index(whole[50:53])]
    assert text.finish_reason == "STOP"


@pytest.mark.parametrize("leave", ["close", "cancel", "with", "closing", "break"])
def test_a_text_left_early_ends_its_call_and_keeps_what_it_knows(client, leave):
    text = client.generate(max_chars=0, seed=5, resume_every=1, chars_per_second=500)
    if leave in ("close", "cancel"):
        next(text)
        next(text)
        getattr(text, leave)()
    elif leave == "break":
        for _ in text:
            if text.position > 1:
                break
    else:
        with text if leave == "with" else closing(text):
            next(text)
            next(text)
    known = (text.seed, text.finish_reason, text.usage)
    token, position = text.resume_token, text.resume_position
    if leave == "break":
        del text  # nothing else refers to it
    else:
        assert list(text) == []
        text.close()
    wait_until(lambda: is_idle(client))
    assert known == (5, None, None)
    assert position > 0
    rest = "".join(client.generate(resume_token=token, max_chars=20))
    assert rest == "".join(client.generate(max_chars=position + 20, seed=5))[position:]


def test_a_text_that_is_closed_before_it_began_makes_no_call():
    with Client("127.0.0.1:1", retry_seconds=0) as nobody:
        text = nobody.generate("a")
        text.close()
        assert list(text) == []
        with nobody.generate("a"), nobody.score("a"), nobody.stream(pb.GenerateRequest()):
            pass


def test_another_thread_ends_a_text(client):
    text = client.generate(max_chars=0, chars_per_second=0.01)
    threading.Timer(0.2, text.close).start()
    assert len("".join(text)) <= 1
    wait_until(lambda: is_idle(client))
    assert text.finish_reason is None


def test_another_thread_ends_a_text_that_waits_for_a_server(tiny_folder):
    with run_server(tiny_folder) as server, server.client() as client:
        text = client.generate(max_chars=0, chars_per_second=100)
        next(text)
        server.process.kill()
        server.process.wait(20)
        threading.Timer(0.5, text.close).start()
        list(text)
    assert text.finish_reason is None


async def test_asyncio_has_the_same(server, client):
    async with AsyncClient(server.target) as asynchronous:
        text = asynchronous.generate("To be", max_chars=60, logprobs=0, resume_every=20, request_id=ID)
        assert isinstance(text, AsyncTextStream)
        assert text.seed is None
        first = await anext(text)
        assert (text.seed is None, text.finish_reason, text.position) == (False, None, len(first))
        whole = first + "".join([piece async for piece in text])
        assert whole == "".join(client.generate("To be", max_chars=60, seed=text.seed))
        assert "".join(entry.character for entry in text.logprobs) == whole
        assert (text.finish_reason, text.usage.generated_chars, text.request_id) == ("LENGTH", 60, ID)
        assert text.resume_position == 60
        async with asynchronous.generate(max_chars=0, chars_per_second=500, resume_every=1) as early:
            async for _ in early:
                break
        assert (early.finish_reason, len(early.resume_token) > 0) == (None, True)
        assert [piece async for piece in early] == []
        async with aclosing(asynchronous.generate(max_chars=0, chars_per_second=500)) as early:
            await anext(early)
        unused = asynchronous.generate("a")
        await unused.aclose()
        async for _ in asynchronous.generate(max_chars=0, chars_per_second=500):
            break
        gc.collect()
        async for message in asynchronous.score("To be", request_id=ID):
            assert len(message.logprobs) <= 5
        while (await asynchronous.models()).streams_running:
            await asyncio.sleep(0.02)


async def test_another_task_ends_a_text(server):
    async with AsyncClient(server.target) as asynchronous:
        text = asynchronous.generate(max_chars=0, chars_per_second=0.01)
        asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(text.aclose()))
        assert len("".join([piece async for piece in text])) <= 1
        text = asynchronous.generate(max_chars=0, chars_per_second=0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_joined(text), 0.2)
        while (await asynchronous.models()).streams_running:
            await asyncio.sleep(0.02)


async def _joined(text):
    return "".join([piece async for piece in text])


def test_the_texts_of_a_session_are_the_same(client):
    with client.interact(seed=5, request_id=ID) as session:
        first = session.generate(max_chars=30, logprobs=1)
        made = "".join(first)
        assert (first.finish_reason, first.position, len(first.logprobs)) == ("LENGTH", 30, 30)
        assert first.request_id == session.request_id == ID
        with session.generate(max_chars=0, chars_per_second=500) as second:
            made += next(second)
        third = session.generate(max_chars=20, chars_per_second=500)
        piece = next(third)
        first.close()  # an old text has no part in the new one
        assert len(piece + "".join(third)) == 20
        fourth = session.generate(max_chars=0, chars_per_second=0.01)
        threading.Timer(0.2, fourth.close).start()
        assert len("".join(fourth)) <= 1
        assert session.feed("a").chars == 1


def test_without_a_limit_texts_have_400_characters(client):
    assert len("".join(client.generate("a"))) == 400
    with client.interact() as session:
        assert len("".join(session.generate())) == 400


async def test_without_a_limit_texts_have_400_characters_in_asyncio_too(server):
    async with AsyncClient(server.target) as client, client.interact() as session:
        assert len(await _joined(client.generate("a"))) == 400
        assert len(await _joined(session.generate())) == 400


# Request ids.


def test_request_ids_are_sent_and_told(tiny_folder):
    with run_server(tiny_folder, "--log-format", "json") as server:
        with server.client() as client:
            list(client.generate("a", max_chars=1, request_id="one"))
            list(client.score("a", request_id="two"))
            list(client.stream(pb.GenerateRequest(max_chars=1), request_id="three"))
            with client.interact(request_id="four"):
                pass
            client.models(request_id="five")
            made = client.generate("a", max_chars=1)
            list(made)
            with pytest.raises(ServerError) as refused:
                list(client.generate("漢", request_id="six"))
            with pytest.raises(ServerError) as refused_session, client.interact("nobody", request_id="seven"):
                pass
        _, log = server.stop()
    logged = [json.loads(line).get("id") for line in log.splitlines() if '"call"' in line]
    assert sorted(logged) == sorted(["one", "two", "three", "four", made.request_id, "six", "seven"])
    assert (refused.value.request_id, refused_session.value.request_id) == ("six", "seven")
    assert refused.value.__notes__ == ["request id: six"]
    assert str(refused.value).startswith("prompt: character '漢'")


async def test_errors_without_a_server_have_the_request_id_too():
    with Client("127.0.0.1:1", retry_seconds=0) as nobody:
        for call in (
            nobody.models,
            lambda **given: next(nobody.generate(**given)),
            lambda **given: next(nobody.score("a", **given)),
        ):
            with pytest.raises(ServerError) as caught:
                call(request_id=ID)
            assert caught.value.request_id == ID
    async with AsyncClient("127.0.0.1:1", retry_seconds=0) as nobody:
        for call in (nobody.models, lambda **given: anext(nobody.generate(**given))):
            with pytest.raises(ServerError) as caught:
                await call(request_id=ID)
            assert caught.value.request_id == ID
        with pytest.raises(ServerError) as caught:
            async with nobody.interact(request_id=ID):
                pass
        assert caught.value.request_id == ID


def test_a_token_and_a_request_id_go_together(tiny_folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text("a-token-for-the-tests-0123\n")
    with (
        run_server(tiny_folder, "--auth-token-file", tokens) as server,
        Client(server.target, security=Security(token="a-token-for-the-tests-0123")) as client,
    ):
        assert len("".join(client.generate("a", max_chars=5, request_id=ID))) == 5


# Interceptors.


class Instrumented(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """As instrumentation does it: responses that are streamed pass through a plain generator, which has no `cancel`."""

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details, request)

    def intercept_unary_stream(self, continuation, details, request):
        yield from continuation(details, request)

    def intercept_stream_stream(self, continuation, details, requests):
        yield from continuation(details, requests)


@pytest.fixture
def instrumented(server, monkeypatch):
    plain = grpc.insecure_channel
    monkeypatch.setattr(
        security.grpc, "insecure_channel", lambda *given: grpc.intercept_channel(plain(*given), Instrumented())
    )
    with Client(server.target) as client:
        yield client


def test_instrumented_clients_work(instrumented, client):
    whole = "".join(client.generate("To be", max_chars=50, seed=7))
    text = instrumented.generate("To be", max_chars=50, seed=7)
    assert ("".join(text), text.finish_reason) == (whole, "LENGTH")
    assert sum(len(message.logprobs) for message in instrumented.score("To be")) == 5
    with instrumented.generate("To be", max_chars=0, chars_per_second=500) as endless:
        next(endless)
    for _ in instrumented.generate("To be", max_chars=0, chars_per_second=500):
        break
    with pytest.raises(ServerError, match="vocabulary"):
        next(instrumented.generate("漢"))
    with instrumented.interact(seed=7) as session:
        session.feed("To be")
        assert len("".join(session.generate(max_chars=30))) == 30
        for _ in session.generate(max_chars=0, chars_per_second=500):
            break
        assert session.feed("a").chars == 1
    wait_until(lambda: is_idle(client))


def test_an_instrumented_text_survives_its_server(tiny_folder, instrumented, monkeypatch, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    with (
        run_server(tiny_folder, "--resume-key-file", key) as one,
        run_server(tiny_folder, "--resume-key-file", key) as other,
    ):
        whole = "".join(other.client().generate(max_chars=3000, seed=3))
        with Client(f"{one.target},{other.target}") as client:
            text = client.generate(max_chars=3000, seed=3, chars_per_second=5000)
            made = next(text)
            one.process.kill()
            assert made + "".join(text) == whole
