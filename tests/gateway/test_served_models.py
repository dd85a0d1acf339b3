"""What is known about the models behind the gateway: fresh when it matters, by server, shared by requests."""

import asyncio

import grpc
import pytest

from rill.client.errors import ServerError
from rill.client.origin import Origin
from rill.gateway.errors import ApiError
from rill.gateway.served_models import ServedModels
from rill.gateway.servers import Servers
from rill.v1 import rill_pb2 as pb


def model(name, model_id, symbols="ab"):
    return pb.ModelInfo(name=name, model_id=model_id, numerics="x", vocabulary=list(symbols))


def away():
    error = ServerError(grpc.StatusCode.UNAVAILABLE, "no connection")
    error.origin = Origin.CONNECTION
    return error


class FakeClient:
    """Servers, each a list of models or an error; counts the calls to each."""

    def __init__(self, *servers):
        self.servers, self.calls = list(servers), [0] * len(servers)
        self.addresses = len(servers)

    def at(self, *numbers):
        return FakePart(self, numbers)


class FakePart:
    def __init__(self, whole, numbers):
        self.whole, self.numbers = whole, numbers

    async def models(self, timeout):  # noqa: ASYNC109
        (number,) = self.numbers
        self.whole.calls[number] += 1
        await asyncio.sleep(0)
        found = self.whole.servers[number]
        if isinstance(found, Exception):
            raise found
        return pb.ListModelsResponse(models=found)


async def test_requests_at_one_time_share_a_call():
    client = FakeClient([model("m", "1")])
    models = ServedModels(1)
    listings = await asyncio.gather(*(models.fresh(client) for _ in range(50)))
    assert client.calls == [1]
    assert all(listing.find("").model_id == "1" for listing in listings)


async def test_a_call_that_had_begun_is_not_fresh():
    client = FakeClient([model("m", "1")])
    models = ServedModels(1)
    first = asyncio.create_task(models.fresh(client))
    while not client.calls[0]:
        await asyncio.sleep(0)
    second = asyncio.create_task(models.fresh(client))
    await asyncio.gather(first, second)
    assert client.calls == [2]


async def test_a_namesake_has_its_own_vocabulary():
    client = FakeClient([model("m", "1", "ab")])
    models = ServedModels(1)
    before = (await models.fresh(client)).find("m")
    assert (await models.fresh(client)).find("m") is before
    client.servers[0] = [model("m", "2", "ba")]
    after = (await models.fresh(client)).find("m")
    assert before != after
    assert before.fingerprint != after.fingerprint
    assert after.vocabulary.symbols == ("b", "a")


async def test_a_vocabulary_of_a_newer_server_is_an_error_for_its_model_alone():
    newer = pb.ModelInfo(name="new", model_id="2", vocabulary=["a"], tokenizer="bytes")
    listing = await ServedModels(1).fresh(FakeClient([model("m", "1"), newer]))
    assert listing.find("m").vocabulary.symbols == ("a", "b")
    with pytest.raises(ApiError, match="cannot use the vocabulary of model 'new': tokenizer 'bytes' is not") as caught:
        _ = listing.find("new").vocabulary
    assert (caught.value.status, caught.value.param) == (501, "model")


async def test_servers_may_have_different_models():
    client = FakeClient([model("m", "1"), model("a", "2")], [model("m", "9"), model("b", "3")], [model("a", "2")])
    listing = await ServedModels(3).fresh(client)
    assert {name: one.addresses for name, one in listing.models.items()} == {"m": (0,), "a": (0, 2), "b": (1,)}
    assert listing.find("").name == "m"
    assert Servers(client).for_call(client, listing.find("b")).numbers == (1,)
    with pytest.raises(ApiError, match="the models are 'm', 'a', 'b'"):
        listing.find("c")


async def test_a_server_that_is_away_may_come_back_with_the_model():
    client = FakeClient(away(), [model("m", "1")])
    models = ServedModels(2)
    listing = await models.fresh(client)
    assert (listing.find("m").addresses, listing.find("m").silent) == ((1,), (0,))
    await models.fresh(client)
    assert client.calls == [1, 2]  # it is not waited for again
    client.servers = [[model("m", "1")], away()]
    listing = await models.fresh(client)
    assert (listing.find("m").addresses, listing.find("m").silent) == ((0,), (1,))


async def test_calls_take_turns_among_the_servers_that_answer():
    client = FakeClient([model("m", "1")], [model("a", "2")], [model("m", "1")], away())
    servers = Servers(client, spread=True)
    found = (await servers.models.fresh(client)).find("m")
    assert [servers.for_call(client, found).numbers for _ in range(3)] == [(0, 2, 3), (2, 0, 3), (0, 2, 3)]
    assert Servers(client).for_call(client) is client


async def test_when_no_server_answers_the_error_is_told():
    client = FakeClient(away(), away())
    models = ServedModels(2)
    for _ in range(2):
        with pytest.raises(ServerError, match="no connection"):
            await models.fresh(client)
    assert client.calls == [2, 2]


async def test_a_listing_of_a_moment_ago_is_recent(monkeypatch):
    client, now = FakeClient([model("m", "1")]), [100.0]
    monkeypatch.setattr("rill.gateway.served_models.time.monotonic", lambda: now[0])
    models = ServedModels(1)
    assert models.recent() is None
    listing = await models.fresh(client)
    for seconds, is_recent in [(0, True), (0.04, True), (0.02, False)]:
        now[0] += seconds
        assert models.recent() is (listing if is_recent else None)


async def test_a_call_under_way_may_be_recent_enough():
    client = FakeClient([model("m", "1")])
    models = ServedModels(1)
    first = asyncio.create_task(models.fresh(client))
    while not client.calls[0]:
        await asyncio.sleep(0)
    assert await models.fresh(client, 60.0) is await first
    assert client.calls == [1]
