"""How the benchmark counts messages and time: tallies, percentiles, mixes, arrivals and stalls."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest
from random_models import MOLECULES

from rill.bench import BenchError
from rill.bench.latency import Percentiles, Tally, TextTimes, percentiles
from rill.bench.load_generator import watched
from rill.bench.open import MOST_OUTSTANDING, arrivals, open_loop
from rill.bench.options import MIXES, Mix, Objective
from rill.bench.server import Server
from rill.bench.workload import Workload, plain
from rill.v1 import rill_pb2 as pb
from rill.v1.rill_pb2_grpc import TextGenerationServicer, add_TextGenerationServicer_to_server
from rill.vocabulary import LONGEST, UNKNOWN, Vocabulary

LAST = pb.FINISH_REASON_LENGTH


def test_a_text_counts_its_messages_and_their_times() -> None:
    tally = Tally()
    text = TextTimes(10.0, Objective(first_ms=500, character_ms=100))
    assert text.received(pb.GenerateResponse(text="a"), 10.25, tally) == 1
    assert text.received(pb.GenerateResponse(text="bcde"), 10.45, tally) == 4  # b was due at 10.6
    usage = pb.Usage(queued_seconds=0.125)
    assert text.received(pb.GenerateResponse(text="f", finish_reason=LAST, usage=usage), 11.0, tally) == 1  # by 11.0
    assert (tally.characters, tally.messages, tally.texts) == (6, 3, 1)
    assert tally.first == pytest.approx([0.25])
    assert tally.inter == pytest.approx([0.05, 0.55])
    assert tally.queued == [0.125]
    assert (tally.on_time_texts, tally.on_time_characters) == (1, 6)


@pytest.mark.parametrize(("first", "second", "on_time"), [(0.6, 0.61, 0), (0.5, 0.7, 1)])
def test_a_text_with_a_late_character_stays_late(first: float, second: float, on_time: int) -> None:
    tally = Tally()
    text = TextTimes(0.0, Objective(first_ms=500, character_ms=100))
    text.received(pb.GenerateResponse(text="a"), first, tally)
    text.received(pb.GenerateResponse(text="b"), second, tally)
    text.received(pb.GenerateResponse(text="c", finish_reason=LAST), second, tally)
    assert (tally.texts, tally.on_time_texts, tally.on_time_characters) == (1, 0, on_time)


def test_messages_without_text_have_no_characters() -> None:
    tally = Tally()
    text = TextTimes(0.0, Objective())
    text.received(pb.GenerateResponse(), 1.0, tally)
    text.received(pb.GenerateResponse(text="a"), 2.0, tally)
    text.received(pb.GenerateResponse(finish_reason=LAST), 3.0, tally)
    assert (tally.first, tally.inter, tally.messages, tally.texts) == ([2.0], [], 3, 1)


def test_percentiles() -> None:
    assert percentiles([], 1e3) == Percentiles(None, None, None, None)
    assert percentiles([value / 100 for value in range(101)], 100) == Percentiles(50, 90, 99, 100)


@pytest.mark.parametrize("mix", [*MIXES.values(), plain(7)])
def test_texts_of_a_mix_have_its_lengths(mix: Mix) -> None:
    texts, again = (Workload("m", mix, Vocabulary((UNKNOWN, "a", "b", "é"))) for _ in range(2))
    requests = [texts.request() for _ in range(500)]
    assert requests == [again.request() for _ in range(500)]
    assert len({request.sampling.seed for request in requests}) == 500
    for bounds, lengths in (
        (mix.prompt, [len(request.prompt) for request in requests]),
        (mix.generated, [request.max_chars for request in requests]),
    ):
        assert bounds[0] <= min(lengths) <= max(lengths) <= bounds[1]
    assert {character for request in requests for character in request.prompt} <= set("abé")
    assert np.mean([request.max_chars for request in requests]) == pytest.approx(texts.mean_generated, rel=0.2)


@pytest.mark.parametrize("vocabulary", [MOLECULES, Vocabulary(("a", "b", "ab", "<s>"), LONGEST, "<s>")])
def test_prompts_of_longer_symbols_can_be_cut(vocabulary: Vocabulary) -> None:
    prompts = [Workload("m", Mix("prompts", (8, 8), (1, 1)), vocabulary).request().prompt for _ in range(3)]
    workload = Workload("m", Mix("prompts", (1, 30), (1, 1)), vocabulary)
    prompts += [workload.request().prompt for _ in range(200)]
    ids = {index for prompt in prompts for index in vocabulary.encode(prompt)}
    assert ids == set(range(len(vocabulary))) - {vocabulary.start_id, *vocabulary.end_ids}


def test_a_prompt_that_cannot_be_cut_is_shortened() -> None:
    vocabulary = Vocabulary(("a", "b"), "regex:[ab]{2}|.")  # two in a row are no symbol
    assert Workload("m", Mix("prompts", (4, 4), (1, 1)), vocabulary).request().prompt in ("a", "b")


def test_a_symbol_of_several_characters_is_one() -> None:
    tally, text = Tally(), TextTimes(0.0, Objective())
    assert text.received(pb.GenerateResponse(text="CCl[nH]", symbol_lengths=[1, 2, 4]), 1.0, tally) == 3
    assert (tally.characters, text.characters) == (3, 3)


def test_arrivals_are_poisson_like_and_repeat() -> None:
    due = np.array(list(arrivals(np.random.default_rng(3), 200.0, 50.0)))
    assert due.tolist() == list(arrivals(np.random.default_rng(3), 200.0, 50.0))
    assert (np.diff(due) > 0).all()
    assert 0 < due[0] <= due[-1] < 50
    assert len(due) == pytest.approx(10_000, rel=0.05)
    gaps = np.diff(due)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution
    counts = np.histogram(due, bins=500, range=(0, 50))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.25)  # as of Poisson's


async def test_a_delayed_client_reports_its_lag() -> None:
    async with watched() as client:
        await asyncio.sleep(0.02)
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        await asyncio.sleep(0.02)
    assert client.seconds > 0.14
    assert client.cpu >= 0.1
    assert max(client.lag) > 0.08


class Fake(TextGenerationServicer):
    """A server of one-character texts in this event loop; `on_call` may delay a call, or everything."""

    def __init__(self, on_call) -> None:
        self.calls, self._on_call = 0, on_call

    async def Generate(self, request, context) -> None:
        self.calls += 1
        await self._on_call(self.calls, context)
        await context.write(pb.GenerateResponse(text="a", finish_reason=LAST))


@asynccontextmanager
async def fake_server(on_call) -> AsyncIterator[Server]:
    server = grpc.aio.server()
    add_TextGenerationServicer_to_server(Fake(on_call), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Server(f"127.0.0.1:{port}")
    finally:
        await server.stop(0.2)


async def offer(server: Server, rate: float, seconds: float):
    texts = Workload("", plain(1), Vocabulary(("a",)))
    return await open_loop(server, texts, 2 * rate, 50, seconds, Objective(first_ms=200))


async def test_a_stall_shows_in_every_text_that_was_due_during_it() -> None:
    """The stall delays this process as well, so texts are requested late: their times count from when they were due."""

    async def on_call(number, context) -> None:
        if number == 40:
            time.sleep(0.5)  # noqa: ASYNC251  # the stall

    async with fake_server(on_call) as server:
        found = await offer(server, 100, 1.0)
    assert found.offered == found.completed == pytest.approx(100, abs=40)
    assert (found.dropped, found.refused, found.unfinished) == (0, 0, 0)
    assert found.first_character_ms.max > 400
    late = 1 - found.on_time_texts  # 200 ms and more: of the texts due in the first 300 ms of the stall
    assert 0.1 < late < 0.9
    assert found.first_character_ms.p90 > 200
    assert found.client_lag_ms.max > 300


async def test_texts_that_never_arrive_are_counted() -> None:
    async def on_call(number, context) -> None:
        if number % 4 == 0:
            await asyncio.sleep(60)
        if number % 4 == 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    async with fake_server(on_call) as server:
        found = await offer(server, 200, 0.3)
    assert found.unfinished > 0
    assert found.refused > 0
    assert 0 < found.refused_ms.p50 <= found.refused_ms.max
    assert found.completed + found.refused + found.unfinished == found.offered
    assert found.on_time_texts <= found.completed / found.offered
    assert found.first_character_ms.max > 500  # the wait of a text that was given up after twice 0.3 s


async def test_a_complete_text_whose_call_has_not_ended_is_not_unfinished() -> None:
    async def on_call(number, context) -> None:
        await context.write(pb.GenerateResponse(text="a", finish_reason=LAST))
        await asyncio.sleep(60)

    async with fake_server(on_call) as server:
        found = await offer(server, 200, 0.2)
    assert found.offered == found.completed > 0
    assert found.unfinished == 0


async def test_more_than_the_most_outstanding_texts_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rill.bench.open.MOST_OUTSTANDING", 5)

    async def on_call(number, context) -> None:
        await asyncio.sleep(60)

    async with fake_server(on_call) as server:
        found = await offer(server, 200, 0.2)
    assert MOST_OUTSTANDING > 5
    assert found.completed == 0
    assert 0 < found.dropped <= found.offered  # the warm-up may have filled all five slots
    assert found.dropped + found.unfinished == found.offered


async def test_a_server_that_fails_is_an_error() -> None:
    async def on_call(number, context) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "broken")

    async with fake_server(on_call) as server:
        with pytest.raises(BenchError, match="INTERNAL: broken"):
            await offer(server, 200, 0.2)
