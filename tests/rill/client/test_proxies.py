"""Texts, scores and sessions behind a proxy: whatever it makes of a lost call, nothing is skipped or repeated.

A stand-in (`middle_man`) says what HAProxy, nginx and Envoy say; tests/system/test_proxies.py has real ones.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc
import pytest
from middle_man import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    Break,
    MiddleMan,
    end_and_reset,
    end_without_trailers,
    hang_up,
    page,
    reset,
    status_only,
    stay_silent,
    trailers,
)
from servers import run_server

from rill.cli.batch.runner import Servers
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.client.requests import generate_request
from rill.client.sync import Client

Code = grpc.StatusCode
LOST = {
    "NO_ERROR": reset(NO_ERROR),
    "INTERNAL_ERROR": reset(INTERNAL_ERROR),
    "REFUSED_STREAM": reset(REFUSED_STREAM),
    "CANCEL": reset(CANCEL),
    "ENHANCE_YOUR_CALM": reset(ENHANCE_YOUR_CALM),
    "END_STREAM": end_without_trailers,
    "END_STREAM and CANCEL": end_and_reset,
    "trailers with INTERNAL": trailers(13),
    "trailers with UNKNOWN": trailers(2),
    "trailers with CANCELLED": trailers(1),
    "hang up": hang_up,
}
REFUSED = {
    **{f"page {status}": page(status) for status in (408, 425, 429, 500, 502, 503, 504, 520)},
    "UNAVAILABLE": status_only(14),
    "INTERNAL": status_only(13),
    "marked page": page(502, ("x-request-id", "of-the-proxy")),
}
WHOLE = {"prompt": "To be", "seed": 5, "max_chars": 900, "resume_every": 16, "chars_per_second": 3000.0}


@pytest.fixture(scope="module")
def whole(server):
    with server.client() as client:
        return "".join(client.generate(**WHOLE))


def generated(target, asynchronous, **options):
    """The text of WHOLE by one of the clients."""
    if not asynchronous:
        with Client(target, **options) as client:
            return "".join(client.generate(**WHOLE))

    async def run():
        async with AsyncClient(target, **options) as client:
            return "".join([piece async for piece in client.generate(**WHOLE)])

    return asyncio.run(run())


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["Client", "AsyncClient"])


@BOTH
@pytest.mark.parametrize("marks", [False, True])
def test_a_text_goes_on(server, whole, asynchronous, marks):
    """One text, which every kind of loss breaks in turn; each call that continues from a token is broken as well."""
    breaks = [Break(end, after=3) for end in LOST.values()]
    with MiddleMan(server.target, breaks, marks) as proxy:
        assert generated(proxy.address, asynchronous) == whole
        assert proxy.calls > len(breaks)


@BOTH
def test_before_the_first_character(server, whole, asynchronous):
    """Ten addresses, as each is called once without a wait."""
    ends = [*LOST.values(), *REFUSED.values()]
    with MiddleMan(server.target, [Break(end) for end in ends]) as proxy:
        assert generated(",".join([proxy.address] * 10), asynchronous) == whole
        assert proxy.calls >= len(ends) - 2  # gRPC itself repeats what was refused


@BOTH
@pytest.mark.parametrize("name", ["END_STREAM and CANCEL", pytest.param("INTERNAL_ERROR", marks=pytest.mark.long)])
def test_scores_models_and_sessions(server, asynchronous, name):
    breaks = [Break(LOST[name]), Break(LOST[name], after=1), None]
    text = "To be or not to be " * 100
    with server.client() as client:
        total = list(client.score(text))[-1].total.logprob
        with client.interact(seed=7) as session:
            expected = talk(session, lambda: None)
    with MiddleMan(server.target, breaks) as proxy:
        if asynchronous:
            scored, count, models = asyncio.run(score_async(proxy.address, text))
        else:
            with Client(proxy.address) as client:
                messages = list(client.score(text))
                models = client.models().models
            scored, count = messages[-1].total.logprob, sum(len(message.logprobs) for message in messages)
        assert (scored, count, [model.name for model in models]) == (total, len(text), ["tiny"])
    with MiddleMan(server.target, [Break(LOST[name]), None]) as proxy:
        if asynchronous:
            assert asyncio.run(models_async(proxy.address)) == "tiny"
        else:
            with Client(proxy.address) as behind:
                assert behind.models().models[0].name == "tiny"
        assert proxy.calls >= 2
    for breaks in ([Break(LOST[name])], [Break(LOST[name], after=4)], [None, Break(LOST[name], after=1)]):
        with MiddleMan(server.target, breaks) as proxy:
            if asynchronous:
                assert asyncio.run(talk_async(proxy, LOST[name])) == expected
            else:
                with Client(proxy.address) as client, client.interact(seed=7) as session:
                    assert talk(session, lambda proxy=proxy: proxy.cut(LOST[name])) == expected
            assert proxy.calls > 2


async def score_async(target, text):
    async with AsyncClient(target) as client:
        messages = [message async for message in client.score(text)]
        models = (await client.models()).models
    return messages[-1].total.logprob, sum(len(message.logprobs) for message in messages), models


async def models_async(target):
    async with AsyncClient(target) as client:
        return (await client.models()).models[0].name


def talk(session, cut):
    """What a session reads and writes; between two actions an idle time may end its call."""
    logprob = session.feed("To be").logprob
    first = "".join(session.generate(max_chars=300, chars_per_second=3000))
    cut()
    session.update(temperature=0.5)
    second = "".join(session.generate(max_chars=100))
    cut()
    return logprob, first, second, session.feed("or not").logprob, session.position


async def talk_async(proxy, end):
    async with AsyncClient(proxy.address) as client, client.interact(seed=7) as session:
        logprob = (await session.feed("To be")).logprob
        first = "".join([piece async for piece in session.generate(max_chars=300, chars_per_second=3000)])
        proxy.cut(end)
        session.update(temperature=0.5)
        second = "".join([piece async for piece in session.generate(max_chars=100)])
        proxy.cut(end)
        return logprob, first, second, (await session.feed("or not")).logprob, session.position


async def test_batch_goes_on(server, whole):
    request = generate_request(**WHOLE)
    breaks = [None, Break(end_without_trailers), Break(reset(INTERNAL_ERROR), 2), None, Break(page(503))]
    with MiddleMan(server.target, breaks) as proxy:
        source = Servers(proxy.address, "", 10.0)
        try:
            await source.served_model()
            for _ in range(2):
                assert (await source.text(request, lambda count: None)).text == whole
        finally:
            await source.close()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (page(400), Code.INTERNAL),
        (page(401), Code.UNAUTHENTICATED),
        (page(403), Code.PERMISSION_DENIED),
        (page(404), Code.UNIMPLEMENTED),
        (page(413), Code.UNKNOWN),
        (page(302), Code.UNKNOWN),
        (status_only(8), Code.RESOURCE_EXHAUSTED),
        (status_only(16), Code.UNAUTHENTICATED),
        (status_only(3), Code.INVALID_ARGUMENT),
    ],
)
@BOTH
def test_what_a_proxy_would_say_again(server, asynchronous, end, code):
    with MiddleMan(server.target, [Break(end)]) as proxy:
        with pytest.raises(ServerError) as caught:
            generated(proxy.address, asynchronous)
        assert (caught.value.code, caught.value.origin, proxy.calls) == (code, Origin.SERVER, 1)


@BOTH
def test_routes_that_a_proxy_forgot_for_a_moment(server, whole, asynchronous):
    for _ in range(5):  # gRPC may drop the messages before the break, and then nothing was received before the page
        breaks = [Break(end_without_trailers, 6), Break(page(404))]
        with suppress(ServerError), MiddleMan(server.target, breaks) as proxy:
            assert generated(proxy.address, asynchronous) == whole
            return
    pytest.fail("no text continued")


@BOTH
def test_a_loss_that_lasts(server, asynchronous):
    with MiddleMan(server.target, [Break(end_without_trailers)] * 1000) as proxy:
        with pytest.raises(ServerError) as caught:
            generated(proxy.address, asynchronous, retry_seconds=0.3)
        assert (caught.value.code, caught.value.origin) == (Code.UNKNOWN, Origin.NETWORK)
        assert proxy.calls > 2
        calls = proxy.calls
        with pytest.raises(ServerError):
            generated(proxy.address, asynchronous, retry_seconds=0)
        assert proxy.calls == calls + 1


# What happens here is not the network's.


def test_the_callers_own_deadline(server):
    with MiddleMan(server.target, [Break(stay_silent, 3)]) as proxy, Client(proxy.address) as client:
        with pytest.raises(ServerError) as caught:
            list(client.generate("a", timeout=0.5, chars_per_second=50))
        assert (caught.value.code, proxy.calls) == (Code.DEADLINE_EXCEEDED, 1)


def test_a_client_that_is_closed(server):
    """In the middle of a text, and while it waits for a server."""
    with MiddleMan(server.target, [None, *[Break(page(503))] * 1000]) as proxy:
        for seconds in (0.0, 0.3):
            client = Client(proxy.address)
            pieces = client.generate(max_chars=0, chars_per_second=50)
            if not seconds:
                next(pieces)
            threading.Timer(seconds, client.close).start()
            with pytest.raises(ServerError) as caught:
                list(pieces)
            assert caught.value.code is Code.CANCELLED
            calls = proxy.calls
        assert proxy.calls == calls


@contextmanager
def garbage():
    """A server whose messages are none; yields its address and the calls that it got."""
    calls = []

    def answer(request, context):
        calls.append(request)
        yield b"\xff\xff"

    rpc = grpc.unary_stream_rpc_method_handler(answer)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("rill.v1.TextGeneration", {"Generate": rpc})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", calls
    finally:
        server.stop(None).wait()


@BOTH
def test_an_answer_that_is_no_message(asynchronous):
    with garbage() as (target, calls):
        with pytest.raises(ServerError) as caught:
            generated(target, asynchronous)
        assert (caught.value.code, caught.value.origin, len(calls)) == (Code.INTERNAL, Origin.SERVER, 1)


# Another address before the first character.


@pytest.fixture(scope="module")
def full(tiny_folder):
    """A server whose only slot is taken."""
    with (
        run_server(tiny_folder, "--max-streams", 1, "--max-waiting", 0) as running,
        running.client() as client,
        client.interact(),
    ):
        yield running


@BOTH
def test_an_idle_server_beside_a_full_one(full, server, whole, asynchronous):
    target = f"{full.target},{server.target}"
    assert generated(target, asynchronous, retry_seconds=0) == whole
    if asynchronous:
        asyncio.run(others_async(target))
        return
    with Client(target, retry_seconds=0) as client:
        assert list(client.score("To be"))[-1].total.chars == 5
        with client.interact() as session:
            assert session.feed("To be").chars == 5


async def others_async(target):
    async with AsyncClient(target, retry_seconds=0) as client:
        assert [message async for message in client.score("To be")][-1].total.chars == 5
        async with client.interact() as session:
            assert (await session.feed("To be")).chars == 5


@BOTH
def test_a_slot_that_becomes_free_in_time(tiny_folder, asynchronous):
    with run_server(tiny_folder, "--max-streams", 1, "--max-waiting", 0) as running, running.client() as client:
        session = client.interact()
        session.__enter__()
        threading.Timer(0.3, session.close).start()
        assert len(generated(running.target, asynchronous)) == WHOLE["max_chars"]
        with client.interact(), pytest.raises(ServerError) as caught:
            generated(running.target, asynchronous, retry_seconds=0.1)
        assert (caught.value.code, caught.value.retry_seconds) == (Code.RESOURCE_EXHAUSTED, 1.0)
        assert caught.value.origin is Origin.SERVER
