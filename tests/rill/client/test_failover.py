"""A stream that breaks is continued by the client: every character once, whatever servers do meanwhile."""

import asyncio
import base64
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.cli.generate import ReceivedText
from rill.cli.main import main
from rill.client.aio import AsyncClient
from rill.client.errors import ServerError
from rill.client.failover import Failover
from rill.client.requests import generate_request
from rill.client.sync import Client
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server

Code = grpc.StatusCode
DRAINING, LENGTH, STOP = pb.FINISH_REASON_DRAINING, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP
SEED = 77
CHARACTERS = list("abcdefgé漢😀")
SYMBOLS = ["C", "Cl", "l", "[nH]", "漢😀", "c", "Br", "%10", "=", "("]


def symbols_at(seed, start, end, alphabet=CHARACTERS):
    """The text of a made-up model: each symbol depends on the seed and its position, some of them beyond ASCII."""
    return [alphabet[(seed * 7 + i * i * 3 + i // 5) % 10] for i in range(start, end)]


def text_of(seed, start, end, alphabet=CHARACTERS):
    return "".join(symbols_at(seed, start, end, alphabet))


class Broken(grpc.RpcError):
    """An error as gRPC raises it; with `lost`, it is not a server's own."""

    def __init__(self, code, *details, message="gone", lost=False):
        self._code, self._message, self._packed, self._lost = code, message, [], lost
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            self._packed.append(packed)

    def code(self):
        return self._code

    def details(self):
        return self._message

    def trailing_metadata(self):
        status = Status(code=self._code.value[0], message=self._message, details=self._packed)
        marked = () if self._lost else (("x-request-id", "1"),)
        return (*marked, ("grpc-status-details-bin", status.SerializeToString())) if self._packed else marked


def refused(reason="RESUME_TOKEN_EXPIRED", code=Code.INVALID_ARGUMENT):
    return Broken(code, ErrorInfo(reason=reason, domain="rill"), message="the token is refused")


def full(milliseconds=20):
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(milliseconds)
    return Broken(Code.RESOURCE_EXHAUSTED, info, message="the line is full")


def token_at(position, seed):
    return f"{position} {seed}".encode()


def answers(request, sizes, tokens=True, stop=None, used=SEED, alphabet=CHARACTERS):
    """The messages of a server that works: as many symbols in each as `sizes` says; some have tokens."""
    start, at_seed = 0, request.sampling.seed if request.sampling.HasField("seed") else used
    if request.resume_token:
        start, at_seed = map(int, request.resume_token.split())
    else:
        assert request.prompt == "prompt"
    last = start + request.max_chars if request.max_chars else None
    reason = LENGTH
    assert stop is None or start < stop, "a text goes on after its end"
    if stop is not None and (last is None or stop <= last):
        last, reason = stop, STOP
    position, since = start, 0
    for count in sizes:
        upto = position + count if last is None else min(position + count, last)
        if upto == position and upto != last:
            continue
        symbols = symbols_at(at_seed, position, upto, alphabet)
        message = pb.GenerateResponse(text="".join(symbols), position=position)
        if alphabet is SYMBOLS:
            message.text_position = len(text_of(at_seed, 0, position, SYMBOLS))
            message.symbol_lengths.extend(map(len, symbols))
        if position == start:
            message.seed = at_seed
        if request.HasField("logprobs"):
            message.logprobs.extend(pb.CharLogprob(character=symbol, logprob=-1.0) for symbol in symbols)
        since += upto - position
        position = upto
        if tokens and ((request.resume_every and since >= request.resume_every) or position == last):
            message.resume_token = token_at(position, at_seed)
            since = 0
        if position == last:
            message.finish_reason = reason
            message.usage.generated_chars = position - start
        yield message
        if position == last:
            return


@st.composite
def broken_calls(draw):
    """Calls before one that works: the sizes of its messages, and how it ends."""
    endings = ["break", "ok", "drain", "full", "refuse", "other model", "last word lost"]
    return draw(st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=8), st.sampled_from(endings)), max_size=25))


def refusal(ending, request, original, addresses):
    """The error of a call that brings nothing, if it is one; the request's own token is never refused."""
    if ending == "full":
        return full()
    if request.resume_token == original.resume_token:
        return None
    if ending == "other model" and addresses > 1:
        return refused("RESUME_TOKEN_OTHER_MODEL", Code.FAILED_PRECONDITION)
    return refused() if ending == "refuse" else None


def one_call(request, sizes, ending, **server):
    """The messages of a call that ends like this."""
    position = None
    for message in answers(request, sizes, **server):
        if message.finish_reason and ending == "last word lost":
            for field in ("finish_reason", "resume_token", "usage"):
                message.ClearField(field)
            if not message.text:
                return
        yield message
        position = message.position + (len(message.symbol_lengths) or len(message.text))
        if message.finish_reason:
            return
    if ending == "drain" and position is not None:
        message = pb.GenerateResponse(position=position, finish_reason=DRAINING)
        if server["alphabet"] is SYMBOLS:
            message.text_position = len(text_of(server["used"], 0, position, SYMBOLS))
        if server["tokens"]:
            message.resume_token = token_at(position, server["used"])
        message.usage.generated_chars = 5
        yield message


def play_out(original, calls, addresses, **server):
    """What the application sees of a text when these calls break, and those that follow do not."""
    now = [0.0]
    text = Failover(original, addresses, 1e6, clock=lambda: now[0])
    shown, plan = [], iter(calls)
    while (request := text.request()) is not None:
        own = request.resume_token == original.resume_token
        assert list(request.stop) == (["never"] if own else [])
        assert request.sampling == original.sampling or not original.resume_token
        sizes, ending = next(plan, ([7] * 100, "ok"))
        if not shown:  # a call that brings nothing before the text began is an error
            sizes = [1, *sizes]
        error = refusal(ending, request, original, addresses) if shown else None
        if error is None:
            messages = [text.received(message) for message in one_call(request, sizes, ending, **server)]
            shown += [message for message in messages if message is not None]
            error = None if ending == "ok" else Broken(Code.UNAVAILABLE)
        now[0] += text.ended(error)
        assert 0 <= text.address < addresses
    if (message := text.lost_end()) is not None:
        shown.append(message)
    return shown


@given(
    calls=broken_calls(),
    max_chars=st.one_of(st.just(0), st.integers(1, 200)),
    stop=st.one_of(st.none(), st.integers(1, 200)),
    every=st.sampled_from([0, 1, 10, 64]),
    tokens=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    resumed=st.one_of(st.none(), st.integers(0, 1000)),
    addresses=st.integers(1, 3),
    logprobs=st.booleans(),
    alphabet=st.sampled_from([CHARACTERS, SYMBOLS]),
)
@settings(max_examples=600, deadline=None)
def test_every_character_once(calls, max_chars, stop, every, tokens, seed, resumed, addresses, logprobs, alphabet):
    """Whatever some calls do before one works: what is shown is what one call that works would have brought."""
    if max_chars == 0 and stop is None:
        max_chars = 150
    start, used = resumed or 0, SEED if seed is None or resumed is not None else seed
    stop = None if stop is None else start + stop
    original = generate_request(
        "prompt" if resumed is None else "",
        max_chars=max_chars,
        seed=seed,
        resume_every=every,
        logprobs=2 if logprobs else None,
        stop=["never"],
        resume_token=b"" if resumed is None else token_at(resumed, SEED),
    )
    unchanged = original.SerializeToString()
    shown = play_out(original, calls, addresses, tokens=tokens, stop=stop, used=used, alphabet=alphabet)
    assert original.SerializeToString() == unchanged

    end = min(filter(None, (start + max_chars if max_chars else None, stop)))
    symbols = symbols_at(used, start, end, alphabet)
    assert "".join(message.text for message in shown) == "".join(symbols)
    position, text_position, lengths = start, len(text_of(used, 0, start, alphabet)), []
    for message in shown:
        assert (message.position, message.text_position) == (position, text_position)
        count = len(message.symbol_lengths) or len(message.text)
        position, text_position = position + count, text_position + len(message.text)
        lengths += message.symbol_lengths
        assert [entry.character for entry in message.logprobs] == (
            symbols[message.position - start : position - start] if logprobs else []
        )
    assert lengths == (list(map(len, symbols)) if alphabet is SYMBOLS else [])
    assert [message.finish_reason for message in shown] == [0] * (len(shown) - 1) + [STOP if end == stop else LENGTH]
    assert [message.seed for message in shown] == [used] + [0] * (len(shown) - 1)
    assert all(message.text for message in shown[:-1])
    assert shown[-1].resume_token in {b"", token_at(end, used)}


def begun(addresses=1, retry_seconds=30.0, clock=None, timeout=None, **parameters):
    """A text of which three characters were delivered, without a token; and its clock."""
    now = [100.0]
    request = generate_request("prompt", **{"max_chars": 0, **parameters})
    text = Failover(request, addresses, retry_seconds, timeout, lambda: now[0])
    text.request()
    for message in answers(generate_request("prompt", max_chars=0), [1, 2]):
        text.received(message)
    return text, now


def test_waits_grow_from_when_all_addresses_have_failed():
    text, now = begun(addresses=2)
    waits, addresses = [], []

    def fail():
        while True:
            waits.append(text.ended(Broken(Code.UNAVAILABLE)))
            addresses.append(text.address)
            now[0] += waits[-1]
            assert text.request().sampling.seed == SEED

    with pytest.raises(
        ServerError, match=r"after 3 characters and could not be continued within 30 s \(\d+ attempts\)"
    ):
        fail()
    assert addresses[:5] == [1, 0, 1, 0, 1]
    assert waits[0] == 0
    assert all(wait <= min(2, 0.05 * 2**index) for index, wait in enumerate(waits[1:]))
    assert 15 < len(waits) < 200
    assert now[0] == pytest.approx(130)


def test_a_new_character_makes_patience_new():
    text, now = begun()
    for _ in range(4):
        text.ended(Broken(Code.UNAVAILABLE))
    now[0] += 29
    for message in answers(text.request(), [3]):
        assert text.received(message) is None
    text.ended(None)
    for message in answers(pb.GenerateRequest(resume_token=token_at(3, SEED)), [1]):
        assert text.received(message).text
    now[0] += 29
    assert text.ended(Broken(Code.UNAVAILABLE)) <= 0.05


def test_a_full_line_is_waited_for_as_long_as_it_asks():
    text, _ = begun()
    assert text.ended(full(3000)) == 3
    text, _ = begun(retry_seconds=2)
    assert text.ended(full(3000)) == 2
    text, _ = begun(timeout=1.5)
    assert text.ended(full(3000)) == 1.5


def test_a_call_that_a_server_did_not_take_up_is_made_again():
    untaken = Broken(Code.CANCELLED, message="CANCELLED", lost=True)
    text, _ = begun()
    assert text.ended(untaken) <= 0.05
    text = Failover(generate_request("prompt", max_chars=0), addresses=2, retry_seconds=0)
    assert text.ended(untaken) == 0
    with pytest.raises(ServerError, match="CANCELLED") as caught:
        text.ended(untaken)
    assert caught.value.code is Code.UNAVAILABLE


def test_a_status_that_a_reset_replaced():
    """HAProxy resets what is not complete behind the server's status: gRPC keeps the metadata, and forgets the code."""
    reset, violation = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))", BadRequest()
    text, _ = begun()
    assert text.ended(Broken(Code.CANCELLED, message=reset)) <= 0.05
    text, _ = begun()
    broken = Broken(Code.CANCELLED, message=reset)
    status = Status(code=Code.INVALID_ARGUMENT.value[0], message="no such character")
    status.details.add().Pack(violation)
    broken.trailing_metadata = lambda: (("x-request-id", "1"), ("grpc-status-details-bin", status.SerializeToString()))
    with pytest.raises(ServerError, match="no such character") as caught:
        text.ended(broken)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_what_cannot_be_mended_is_raised():
    cases = [Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED]
    for code in cases:
        text, _ = begun()
        with pytest.raises(ServerError, match=r"^gone\b") as caught:
            text.ended(Broken(code))
        assert caught.value.code is code
    text, _ = begun()
    with pytest.raises(ServerError, match="refused"):  # no token was sent: what is refused is not ours
        text.ended(refused())
    text, _ = begun()
    with pytest.raises(ServerError, match="refused"):
        text.ended(refused("RESUME_TOKEN_OTHER_MODEL", Code.FAILED_PRECONDITION))


def test_before_anything_came_every_address_is_tried_at_least_once():
    text = Failover(generate_request("prompt", max_chars=0), addresses=2, retry_seconds=0)
    assert text.ended(Broken(Code.UNAVAILABLE)) == 0
    assert text.address == 1
    with pytest.raises(ServerError, match=r"^gone\b"):
        text.ended(Broken(Code.UNAVAILABLE))
    text = Failover(generate_request("prompt", max_chars=0), retry_seconds=0)
    with pytest.raises(ServerError, match="without a last message"):
        text.ended(None)
    text = Failover(generate_request(resume_token=b"x", max_chars=0), addresses=2)
    with pytest.raises(ServerError):
        text.ended(refused())
    other_model = refused("RESUME_TOKEN_OTHER_MODEL", Code.FAILED_PRECONDITION)
    assert text.ended(other_model) == 0
    with pytest.raises(ServerError):
        text.ended(other_model)


def test_a_drained_stream_that_had_not_begun():
    text = Failover(generate_request("prompt", max_chars=20))
    first = text.request()
    assert text.received(pb.GenerateResponse(finish_reason=DRAINING, seed=SEED, resume_token=token_at(0, SEED))) is None
    text.ended(Broken(Code.UNAVAILABLE))
    again = text.request()
    assert (again.resume_token, again.prompt, again.max_chars) == (token_at(0, SEED), "", first.max_chars)
    (message,) = [text.received(message) for message in answers(again, [20])]
    assert (message.text, message.seed, message.finish_reason) == (text_of(SEED, 0, 20), SEED, LENGTH)


def test_without_patience_errors_are_shown_as_they_come():
    text, _ = begun(retry_seconds=0)
    drained = text.received(pb.GenerateResponse(text="x", position=3, finish_reason=DRAINING))
    assert (drained.text, drained.finish_reason) == ("x", DRAINING)
    with pytest.raises(ServerError, match=r"^gone\b"):
        text.ended(Broken(Code.UNAVAILABLE))


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_gap_is_no_text(position):
    text, _ = begun()
    with pytest.raises(ServerError, match=f"begins at character {position} instead of 3") as caught:
        text.received(pb.GenerateResponse(text="xyz", position=position))
    assert caught.value.code is Code.DATA_LOSS


def test_symbols_that_do_not_fit_are_no_text():
    text = Failover(generate_request("prompt", max_chars=0))
    text.request()
    for lengths in ([2, 2], [1, 0, 2], [3, 1]):
        with pytest.raises(ServerError, match="lengths of the symbols in a message do not fit its text") as caught:
            text.received(pb.GenerateResponse(text="ClC", symbol_lengths=lengths))
        assert caught.value.code is Code.INTERNAL
    text.received(pb.GenerateResponse(text="ClC", symbol_lengths=[2, 1]))
    with pytest.raises(ServerError, match="begins after 2 code points instead of 3") as caught:
        text.received(pb.GenerateResponse(text="C", symbol_lengths=[1], position=2, text_position=2))
    assert caught.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("lengths", [[1, 2], [1, 1, 1], []])
def test_the_same_text_of_other_symbols_is_another_one(lengths):
    text = Failover(generate_request("prompt", max_chars=0))
    text.request()
    text.received(pb.GenerateResponse(text="ClC", symbol_lengths=[2, 1]))
    text.ended(Broken(Code.UNAVAILABLE))
    assert text.request().max_chars == 2
    with pytest.raises(ServerError, match="do not produce the same text"):
        text.received(pb.GenerateResponse(text="ClC", symbol_lengths=lengths, finish_reason=LENGTH))


@pytest.mark.parametrize(("max_chars", "position"), [(5, 0), (0, 2**64 - 5), (9, 2**64 - 5)])
def test_more_than_was_asked_for_is_no_text(max_chars, position):
    text = Failover(generate_request("prompt", max_chars=max_chars))
    text.request()
    assert text.received(pb.GenerateResponse(text="abc", position=position)).text == "abc"
    with pytest.raises(ServerError, match="continues to character") as caught:
        text.received(pb.GenerateResponse(text="def", position=position + 3, resume_token=b"token"))
    assert caught.value.code is Code.DATA_LOSS


@pytest.mark.parametrize("reason", [LENGTH, STOP])
def test_a_text_that_ends_earlier_than_it_did_is_another_one(reason):
    text, _ = begun()
    text.ended(Broken(Code.UNAVAILABLE))
    text.request()
    with pytest.raises(ServerError, match="ends it after 2 characters") as caught:
        text.received(pb.GenerateResponse(text=text_of(SEED, 0, 2), finish_reason=reason))
    assert caught.value.code is Code.DATA_LOSS


def test_generate_request_has_all_parameters():
    request = generate_request("a", logprobs=0, resume_token=b"t", stop=["x"], include_stop=True)
    assert (request.HasField("logprobs"), request.logprobs, request.resume_token) == (True, 0, b"t")
    assert (request.resume_every, list(request.stop), request.include_stop) == (1024, ["x"], True)
    assert not generate_request("a").HasField("logprobs")
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="retry_seconds"):
            Client("127.0.0.1:1", retry_seconds=seconds)


# Over real sockets: servers that do as a script says.


class Scripted(TextGenerationServicer):
    """Plays one entry of `script` per call, and the last one for all that follow; keeps the requests."""

    def __init__(self, *script):
        self.script, self.requests = list(script), []

    def Generate(self, request, context):
        self.requests.append(request)
        play = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        yield from play(request, context)


def abort(context, error):
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code(), error.details())


def plays(*sizes, error=None, **parameters):
    """Messages of these sizes, and then the error, if any."""

    def play(request, context):
        yield from answers(request, sizes, **parameters)
        if error:
            abort(context, error)

    return play


def works(request, context):
    yield from answers(request, [7] * 1000)


def stalls(request, context):
    yield from answers(request, [7])
    while context.is_active():
        time.sleep(0.01)


@contextmanager
def listening(service, port=0):
    """A gRPC server of the service; its address and a function that kills its connections."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    add_TextGenerationServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}", lambda: server.stop(None).wait()
    finally:
        server.stop(None).wait()


async def collected(client, request, seconds, each):
    async with client:
        messages = []
        async for message in client.stream(request, timeout=seconds):
            messages.append(message)
            each(message)
        return messages


@pytest.fixture(params=["Client", "AsyncClient"])
def read(request):
    """All messages of a text as one of the clients reads them."""

    def read(target, asked, timeout=30, retry_seconds=30.0, each=lambda message: None):
        if request.param == "AsyncClient":

            async def run():
                return await collected(AsyncClient(target, retry_seconds=retry_seconds), asked, timeout, each)

            return asyncio.run(run())
        with Client(target, retry_seconds=retry_seconds) as client:
            messages = []
            for message in client.stream(asked, timeout=timeout):
                messages.append(message)
                each(message)
            return messages

    return read


def asked(**parameters):
    return generate_request("prompt", **{"max_chars": 300, "resume_every": 50, **parameters})


def whole(messages, seed=SEED, count=300):
    assert "".join(message.text for message in messages) == text_of(seed, 0, count)
    assert [bool(message.finish_reason) for message in messages] == [False] * (len(messages) - 1) + [True]
    return True


def gone(*sizes, **parameters):
    return plays(*sizes, error=Broken(Code.UNAVAILABLE), **parameters)


def test_a_stream_goes_on_from_its_token(read):
    service = Scripted(gone(1, 60, 20), works)
    with listening(service) as (target, _):
        assert whole(read(target, asked(chars_per_second=1000)))
    first, catching, rest = service.requests
    assert (first.prompt, first.max_chars, first.resume_token) == ("prompt", 300, b"")
    assert (catching.prompt, catching.max_chars, catching.resume_token) == ("", 20, token_at(61, SEED))
    assert (catching.resume_every, catching.chars_per_second) == (0, 0)
    assert (rest.prompt, rest.max_chars, rest.resume_token) == ("", 219, token_at(81, SEED))
    assert (rest.resume_every, rest.chars_per_second) == (50, 1000)


def test_a_stream_without_a_token_begins_again(read):
    service = Scripted(gone(1, 20), works)
    with listening(service) as (target, _):
        assert whole(read(target, asked()))
    _, catching, rest = service.requests
    assert (catching.prompt, catching.max_chars, catching.sampling.seed) == ("prompt", 21, SEED)
    assert (rest.max_chars, rest.resume_token) == (279, token_at(21, SEED))


def test_servers_without_tokens(read):
    service = Scripted(gone(1, 50, tokens=False), plays(*[7] * 9, tokens=False), gone(80, tokens=False),
                       plays(*[9] * 99, tokens=False))  # fmt: skip
    with listening(service) as (target, _):
        assert whole(read(target, asked(logprobs=0)))
    assert [request.max_chars for request in service.requests] == [300, 51, 300, 300]


def test_a_drained_stream_goes_on_at_the_next_address(read):
    def drains(request, context):
        yield from answers(request, [1, 60])
        message = pb.GenerateResponse(text=text_of(SEED, 61, 70), position=61, finish_reason=DRAINING)
        message.resume_token = token_at(70, SEED)
        yield message
        context.abort(Code.UNAVAILABLE, "going away")

    first, second = Scripted(drains), Scripted(works)
    with listening(first) as (one, _), listening(second) as (other, _):
        started = time.monotonic()
        assert whole(read(f"{one},{other}", asked()))
        assert time.monotonic() - started < 2
    assert len(first.requests) == 1
    assert [(r.resume_token, r.max_chars) for r in second.requests] == [(token_at(70, SEED), 230)]


def test_a_killed_connection_and_a_server_that_comes_back(read):
    """The connections end in the middle, and a server on the same port is there again only after a while."""
    first, second = Scripted(stalls), Scripted(works)
    with listening(first) as (target, kill):

        def restart():
            time.sleep(0.1)
            kill()
            time.sleep(0.5)
            back.set()

        back = threading.Event()
        threading.Thread(target=restart).start()

        def serve_again():
            back.wait(10)
            with listening(second, target.rpartition(":")[2]):
                done.wait(20)

        done = threading.Event()
        thread = threading.Thread(target=serve_again)
        thread.start()
        started = time.monotonic()
        try:
            assert whole(read(target, asked()))
        finally:
            done.set()
            thread.join()
        assert time.monotonic() - started < 5


def test_an_end_without_a_last_message(read):
    service = Scripted(plays(1, 60), works)
    with listening(service) as (target, _):
        assert whole(read(target, asked()))


def test_a_last_message_that_got_lost_is_made_up(read):
    def loses_the_last_word(request, context):
        for message in answers(request, [1, 299]):
            message.ClearField("finish_reason")
            yield message
        context.abort(Code.UNAVAILABLE, "gone")

    service = Scripted(loses_the_last_word)
    with listening(service) as (target, _):
        messages = read(target, asked())
    assert whole(messages)
    assert (messages[-1].text, messages[-1].position, messages[-1].finish_reason) == ("", 300, LENGTH)
    assert messages[-1].resume_token == token_at(300, SEED)
    assert len(service.requests) == 1


def test_a_refused_token_costs_no_character(read):
    for reason in ("RESUME_TOKEN_INVALID", "RESUME_TOKEN_EXPIRED"):
        service = Scripted(gone(1, 60, 20), plays(error=refused(reason)), works)
        with listening(service) as (target, _):
            assert whole(read(target, asked()))
        assert service.requests[1].resume_token
        assert (service.requests[2].prompt, service.requests[2].resume_token) == ("prompt", b"")
        assert service.requests[2].sampling.seed == SEED


def test_a_token_of_another_model_goes_to_other_addresses(read):
    other_model = plays(error=refused("RESUME_TOKEN_OTHER_MODEL", Code.FAILED_PRECONDITION))
    first, second = Scripted(gone(1, 60), works), Scripted(other_model)
    with listening(first) as (one, _), listening(second) as (other, _):
        assert whole(read(f"{one},{other}", asked()))
    assert len(second.requests) == 1
    assert service_raises(read, Scripted(gone(1, 60), other_model)).code is Code.FAILED_PRECONDITION


def service_raises(read, service, **options):
    with listening(service) as (target, _), pytest.raises(ServerError) as caught:
        read(target, asked(), **options)
    return caught.value


def test_the_requests_own_token_is_not_replaced(read):
    service = Scripted(plays(error=refused()))
    assert "refused" in str(service_raises(read, service))
    assert len(service.requests) == 1


@pytest.mark.parametrize("sizes", [(), (1, 40), (1, 60, 40)])
def test_a_request_without_a_token_takes_the_place_of_one_whose_token_is_refused(sizes):
    """Before the text has begun, and in its midst, with and without a later token."""
    no = plays(error=refused())
    forked = generate_request(max_chars=300, resume_every=50, resume_token=token_at(0, SEED))
    service = Scripted(*([gone(*sizes), no] if sizes else []), no, works)
    if sizes == (1, 40):  # there was no token yet
        del service.script[1]
    with (
        listening(service) as (target, _),
        Client(target) as client,
        client.stream(forked, instead=asked(seed=SEED)) as messages,
    ):
        assert whole(list(messages))
    assert not service.script[:-1]
    replay = next(request for request in service.requests if not request.resume_token)
    assert (replay.prompt, replay.max_chars) == ("prompt", sum(sizes) or 300)


def test_another_text_is_data_loss(read):
    def another(request, context):
        for message in answers(request, [7] * 100):
            message.text = message.text.replace("a", "b")
            yield message

    error = service_raises(read, Scripted(gone(1, 60, 40), another))
    assert error.code is Code.DATA_LOSS
    assert "do not produce the same text" in str(error)
    assert "different models or different numerics" in str(error)


def test_giving_up_says_so(read):
    service = Scripted(gone(1, 60), plays(error=Broken(Code.UNAVAILABLE, message="no one here")))
    started = time.monotonic()
    error = service_raises(read, service, retry_seconds=0.5)
    assert 0.4 < time.monotonic() - started < 3
    assert error.code is Code.UNAVAILABLE
    found = re.fullmatch(
        r"the stream broke after 61 characters and could not be continued within 0.5 s \((\d+) attempts\): no one here",
        str(error),
    )
    assert int(found[1]) == len(service.requests) - 1 > 1


def test_without_patience_nothing_is_continued(read):
    service = Scripted(gone(1, 60), works)
    assert str(service_raises(read, service, retry_seconds=0)) == "gone"
    assert len(service.requests) == 1


def test_the_timeout_is_for_all_attempts(read):
    service = Scripted(gone(1, 60), gone(7), gone(7), stalls)
    started = time.monotonic()
    error = service_raises(read, service, timeout=1)
    assert 0.9 < time.monotonic() - started < 3
    assert error.code is Code.DEADLINE_EXCEEDED
    assert len(service.requests) >= 4


def test_a_full_line_is_waited_for(read):
    service = Scripted(gone(1, 60), plays(error=full(300)), plays(error=full(300)), works)
    started = time.monotonic()
    with listening(service) as (target, _):
        assert whole(read(target, asked()))
    assert 0.6 <= time.monotonic() - started < 3
    assert len(service.requests) == 4
    always_full = Scripted(plays(error=full()))
    error = service_raises(read, always_full, retry_seconds=0.3)
    assert (error.code, error.retry_seconds) == (Code.RESOURCE_EXHAUSTED, 0.02)
    assert str(error) == "the line is full"
    assert len(always_full.requests) > 2


def test_closing_the_iterator_cancels_a_later_call_too():
    active = []

    def watched(request, context):
        active.append(context)
        yield from stalls(request, context)

    with listening(Scripted(gone(1, 60), watched)) as (target, _), Client(target) as client:
        messages = client.stream(asked())
        got = ""
        while len(got) < 65:
            got += next(messages).text
        assert active[-1].is_active()
        messages.close()
        deadline = time.monotonic() + 10
        while active[-1].is_active():
            assert time.monotonic() < deadline
            time.sleep(0.01)


async def test_closing_an_asyncio_iterator_cancels_its_call():
    active = []

    def watched(request, context):
        active.append(context)
        yield from stalls(request, context)

    with listening(Scripted(watched)) as (target, _):
        async with AsyncClient(target) as client:
            pieces = client.generate("prompt", max_chars=0)
            assert await anext(pieces)
            assert active[-1].is_active()
            await pieces.aclose()
            async with asyncio.timeout(10):
                while active[-1].is_active():
                    await asyncio.sleep(0.01)


def has_logprobs(request, context):
    """Works, with an alternative to each character."""
    for message in answers(request, [7] * 1000):
        for entry in message.logprobs:
            entry.alternatives.add(character="z", logprob=-2.0)
        yield message


def test_rill_generate_continues(capsys):
    service = Scripted(gone(1, 60), works)
    with listening(service) as (target, _):
        arguments = ["--max-chars", "300", "--resume-every", "50", "--stop", "x y", "--stop", "z", "--include-stop"]
        assert main(["generate", "prompt", "--target", target, "--stats", *arguments]) == 0
    out, errors = capsys.readouterr()
    assert out == text_of(SEED, 0, 300)
    assert "300 characters (seed 77)" in errors
    first = service.requests[0]
    assert (list(first.stop), first.include_stop, first.resume_every) == (["x y", "z"], True, 50)
    service = Scripted(gone(1, 60), works)
    with listening(service) as (target, _):
        assert main(["generate", "prompt", "--target", target, "--max-chars", "300", "--retry-seconds", "0"]) == 1
    assert capsys.readouterr().err == "error: gone (UNAVAILABLE)\n"
    assert main(["generate", "--target", "127.0.0.1:1", "--retry-seconds", "-1"]) == 2
    assert "retry_seconds must be a number of at least 0" in capsys.readouterr().err


def test_rill_generate_prints_tokens_and_logprobs(capsys):
    with listening(Scripted(has_logprobs)) as (target, _):
        assert main(["generate", "prompt", "--target", target, "--max-chars", "9", "--json", "--logprobs", "1"]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["logprobs"][0] == {"character": first["text"][0], "logprob": -1.0, "alternatives": [["z", -2.0]]}
    assert (first["seed"], len(first["logprobs"]), len(last["logprobs"])) == (SEED, 7, 2)
    assert base64.b64decode(last["resume_token"]) == token_at(9, SEED)
    assert "resume_token" not in first


def test_rill_generate_counts_symbols(tmp_path, capsys):
    token, rill = tmp_path / "token", ["generate", "prompt", "--max-chars", "40", "--logit-bias", "Cl=-1"]
    service = Scripted(plays(9, 11, 20, alphabet=SYMBOLS))
    with listening(service) as (target, _):
        assert main([*rill, "--target", target, "--json", "--logprobs", "0"]) == 0
        lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
        assert main([*rill, "--target", target, "--stats", "--save-token", str(token)]) == 0
        assert main([*rill, "--target", target, "--logit-bias", "==2"]) == 0
    texts = [text_of(SEED, *part, SYMBOLS) for part in [(0, 9), (9, 20), (20, 40)]]
    assert [line["text"] for line in lines] == texts
    assert [line["position"] for line in lines] == [0, 9, 20]
    assert [line["text_position"] for line in lines] == [0, len(texts[0]), len(texts[0] + texts[1])]
    assert [entry["character"] for entry in lines[0]["logprobs"]] == symbols_at(SEED, 0, 9, SYMBOLS)
    assert lines[0]["symbol_lengths"] == list(map(len, symbols_at(SEED, 0, 9, SYMBOLS)))
    assert "40 symbols (seed 77)" in capsys.readouterr().err
    assert dict(service.requests[0].sampling.logit_bias) == {"Cl": -1}
    assert dict(service.requests[2].sampling.logit_bias) == {"Cl": -1, "=": 2}


def test_a_token_in_the_middle_says_where_the_text_is_to_be_cut(tmp_path, capsys):
    saved = tmp_path / "token"
    received = ReceivedText()
    received.add(pb.GenerateResponse(text="ClC", symbol_lengths=[2, 1], resume_token=b"token"))
    received.add(pb.GenerateResponse(text="[nH]", symbol_lengths=[4], position=2, text_position=3))
    received.save_token(saved)
    assert "token continues after 2 of these 3 symbols (3 of 7 characters)" in capsys.readouterr().err


def test_a_text_has_the_symbols_of_its_last_piece():
    service = Scripted(gone(1, 60, 20, alphabet=SYMBOLS), plays(*[7] * 99, alphabet=SYMBOLS))
    with listening(service) as (target, _), Client(target) as client:
        text, symbols, lengths = client.generate("prompt", max_chars=300, resume_every=50), [], []
        for piece in text:
            assert "".join(text.symbols) == piece
            symbols += text.symbols
            assert text.position == len(symbols)
            lengths.append(text.text_position)
            cut = len("".join(symbols[: text.resume_position]))
            assert text.resume_text_position == cut
    assert symbols == symbols_at(SEED, 0, 300, SYMBOLS)
    assert lengths[-1] == text.text_position == len("".join(symbols))
    assert (text.resume_position, text.resume_text_position) == (300, text.text_position)


def test_a_reason_that_only_newer_servers_know(capsys):
    def ends(request, context):
        yield pb.GenerateResponse(text="a", seed=1, finish_reason=9)

    with listening(Scripted(ends)) as (target, _):
        assert main(["generate", "prompt", "--target", target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "9"


def test_rill_saves_a_token_and_resumes(tmp_path, capsys):
    saved = tmp_path / "here.token"
    with listening(Scripted(works)) as (target, _):
        rill = ["generate", "--target", target, "--max-chars", "100"]
        assert main([*rill, "prompt", "--save-token", str(saved)]) == 0
        assert saved.read_bytes() == token_at(100, SEED)
        assert main([*rill, "--resume-token", str(saved), "--save-token", str(saved)]) == 0
    out, errors = capsys.readouterr()
    assert (out, errors) == (text_of(SEED, 0, 200), "")
    assert saved.read_bytes() == token_at(200, SEED)
    assert list(tmp_path.iterdir()) == [saved]


def test_rill_saves_a_token_after_ctrl_c(tmp_path, capsys, monkeypatch):
    saved = tmp_path / "here.token"
    messages = [pb.GenerateResponse(text="ab", resume_token=b"token"), pb.GenerateResponse(text="cde", position=2)]

    def interrupted(self, request, timeout):
        yield from messages
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "stream", interrupted)
    rill = ["generate", "--save-token", str(saved)]
    assert main(rill) == 130
    assert saved.read_bytes() == b"token"
    assert "here.token continues after 2 of these 5 characters" in capsys.readouterr().err
    messages.pop(0)
    assert main(rill) == 130
    assert saved.read_bytes() == b"token"
    assert "sent no resume token" in capsys.readouterr().err


def test_rill_says_which_file_is_at_fault(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.touch()
    cases = [
        ("--resume-token", tmp_path / "none", "cannot read"),
        ("--resume-token", empty, "is empty"),
        ("--save-token", tmp_path, "cannot write"),
        ("--save-token", tmp_path / "none" / "file", "cannot write"),
    ]
    for option, path, message in cases:
        with pytest.raises(SystemExit) as caught:
            main(["generate", option, str(path)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
