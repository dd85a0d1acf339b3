"""`score_lines` of both clients with real servers: equal to the score of each line alone, as soon as it is known."""

import asyncio
import queue
import random
import signal
import threading

import grpc
import pytest
from random_models import LETTERS, make_run, save_bundle
from servers import run_server, started, wait_until

from rill import AsyncClient, Client, LineScore, ServerError

LINES = ["To be", "", "or not", "x" * 5000, "漢", *("that is the question" * n for n in range(1, 60))]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    save_bundle(make_run(hidden=16), folder / "one")
    (folder / "key").write_bytes(bytes(32))
    return folder


def alone(client, number, line):
    if not line:
        return LineScore(number, "", 0, 0.0)
    *_, last = client.score(line)
    return LineScore(number, line, last.total.chars, last.total.logprob)


def random_lines(count, seed=0):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randrange(200))) for _ in range(count)]


async def listed(scores):
    return [score async for score in scores]


def test_scores_are_those_of_each_line_alone(server):
    lines = random_lines(60)
    with Client(server.target) as client:
        found = list(client.score_lines(lines))
        assert found == [alone(client, number, line) for number, line in enumerate(lines, 1)]

    async def same():
        async def source():
            for line in lines:
                yield line

        async with AsyncClient(server.target) as client:
            return await listed(client.score_lines(lines)), await listed(client.score_lines(source()))

    assert asyncio.run(same()) == (found, found)


def test_a_line_that_cannot_be_read_has_an_error_in_its_place(server):
    with Client(server.target) as client:
        scores = list(client.score_lines(LINES))
    assert [score.line for score in scores] == list(range(1, len(LINES) + 1))
    assert [bool(score.error) for score in scores] == ["漢" in line for line in LINES]
    assert scores[4].error == "character '漢' (U+6F22) at position 0 is not in the model's vocabulary"


def test_a_score_is_there_before_the_next_line(server):
    """As with a pipe that never ends: each line comes after the score of the one before."""
    given = queue.SimpleQueue()
    with Client(server.target) as client, client.score_lines(iter(given.get, None)) as scores:
        for line in ("one", "", "two"):
            given.put(line)
            assert next(scores).text == line
        given.put(None)
        assert next(scores, None) is None

    async def same():
        lines = asyncio.Queue()

        async def source():
            while True:
                yield await lines.get()

        async with AsyncClient(server.target) as client, client.score_lines(source()) as scores:
            for line in ("one", "", "two"):
                lines.put_nowait(line)
                assert (await anext(scores)).text == line

    asyncio.run(asyncio.wait_for(same(), 30))


def test_lines_are_read_no_further_ahead_than_needed(server):
    count = 0

    def endless():
        nonlocal count
        while True:
            count += 1
            yield "to be"

    with Client(server.target) as client:
        scores = client.score_lines(endless())
        next(scores)
        wait_until(lambda: count > 2000)
        scores.close()
        assert next(scores, None) is None
        assert count < 2200
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("rill-line")])


def failing():
    yield "To be"
    raise RuntimeError("the disk is gone")


def test_what_the_iterable_raises_comes_after_the_scores_before_it(server):
    async def same():
        async with AsyncClient(server.target) as client:
            return [score.text async for score in client.score_lines(failing())]

    with Client(server.target) as client:
        scores = client.score_lines(failing())
        assert next(scores).text == "To be"
        with pytest.raises(RuntimeError, match="the disk is gone"):
            next(scores)
        with pytest.raises(TypeError, match="lines must be str, not bytes"):
            list(client.score_lines([b"To be"]))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        asyncio.run(same())


def test_what_no_call_can_mend_is_raised(server):
    with Client(server.target) as client:
        with pytest.raises(ServerError, match="ghost") as caught:
            list(client.score_lines(["To be"], model="ghost"))
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        with pytest.raises(TypeError, match="include_end"):
            client.score_lines([], include_end=1)
    with pytest.raises(ServerError) as caught:
        next(client.score_lines(["To be"]))
    assert caught.value.code is grpc.StatusCode.CANCELLED


def test_a_server_with_few_streams_is_used_as_far_as_it_allows(bundles):
    lines = random_lines(200)
    flags = ("--max-streams", 5, "--max-waiting", 0, "--max-streams-per-client", 3)
    with run_server(bundles / "one", *flags) as server, Client(server.target) as client:
        assert [score.text for score in client.score_lines(lines) if not score.error] == lines


@pytest.mark.long
def test_a_server_that_is_killed_is_waited_for(bundles):
    lines = [*random_lines(200), "x" * 10_000, *random_lines(200)]
    with started(bundles / "one", bundles / "key") as server, Client(server.target) as client:
        scores = client.score_lines(lines)
        found = [next(scores) for _ in range(20)]
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        with started(bundles / "one", bundles / "key", server.port):
            found += scores
            assert [score.text for score in found] == lines
            assert found == list(client.score_lines(lines))


def test_a_server_that_drains_hands_its_lines_to_another(bundles):
    lines = random_lines(300, 3)
    with run_server(bundles / "one") as first, run_server(bundles / "one") as second:
        with Client(f"{first.target},{second.target}") as client:
            scores = client.score_lines(lines)
            found = [next(scores) for _ in range(20)]
            first.process.terminate()
            found += scores
        assert [score.text for score in found] == lines
        with second.client() as client:
            assert found == list(client.score_lines(lines))


def test_a_timeout_is_for_all_lines(server):
    def endless():
        while True:
            yield "To be, or not to be"

    with Client(server.target) as client, pytest.raises(ServerError) as caught:
        list(client.score_lines(endless(), timeout=0.5))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
