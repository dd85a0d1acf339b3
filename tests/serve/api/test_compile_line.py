"""The waiting line before the compiler: whose constraint is next, and who is refused."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.bundle import Bundle
from rill.serve.api import compile_line
from rill.serve.api.compile_line import Caller, CompileLine
from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.serve.errors import DrainingError, WaitingLineFullError
from rill.vocabulary import Vocabulary

BUNDLE = Bundle("some", "5a" * 32, {"layers": 1, "hidden": 1}, "fp32", Vocabulary(("a", "b")), (), {})
OTHER = Bundle("other", "5b" * 32, {"layers": 1, "hidden": 1}, "fp32", Vocabulary(("a", "c")), (), {})


class Stepwise:
    """A compiler that completes a constraint when the test says so; `began` are those so far."""

    def __init__(self):
        self.began, self.kept, self._goes_on = [], {}, asyncio.Event()

    def cached(self, vocabulary, pattern):
        return self.kept.get((vocabulary, pattern))

    async def compile(self, vocabulary, pattern):
        self.began.append(pattern.value)
        await self._goes_on.wait()
        self._goes_on.clear()
        if pattern.value == "bad":
            raise ConstraintError("regex", "bad")
        return self.kept.setdefault((vocabulary, pattern), Automaton(np.zeros((1, 2), np.int32), np.ones(1, bool)))

    async def complete(self):
        self._goes_on.set()
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch):
    """The time that the line sees; the list's only number may be changed."""
    now = [0.0]
    monkeypatch.setattr(compile_line.time, "monotonic", lambda: now[0])
    return now


def regex(value):
    return Pattern("regex", value, None)


async def begun(line, value, client="a", connection="1", bundle=BUNDLE):
    """A call that waits for its constraint."""
    call = asyncio.create_task(line.compile(bundle, regex(value), Caller(client, connection)))
    await asyncio.sleep(0)
    return call


async def test_one_at_a_time_in_the_order_of_arrival():
    compiler = Stepwise()
    line = CompileLine(compiler)
    calls = [await begun(line, value) for value in ("x", "y", "z")]
    for count in (1, 2, 3):
        await asyncio.sleep(0)
        assert len(compiler.began) == count
        await compiler.complete()
    assert compiler.began == ["x", "y", "z"]
    assert len({id(await call) for call in calls}) == 3


async def test_a_client_with_many_does_not_hold_up_another(clock):
    """Its constraints take a second each; the other's take a millisecond, and all have a turn before its third."""
    compiler = Stepwise()
    line = CompileLine(compiler)
    hostile = [await begun(line, f"slow {number}") for number in range(20)]
    mine = [await begun(line, f"quick {number}", client="b") for number in range(9)]
    while not all(call.done() for call in mine):
        clock[0] += 1 if compiler.began[-1].startswith("slow") else 0.001
        await compiler.complete()
    assert sum(value.startswith("slow") for value in compiler.began) <= 3
    for call in hostile:
        call.cancel()


async def test_connections_of_one_client_share_its_time(clock):
    compiler = Stepwise()
    line = CompileLine(compiler)
    hostile = [await begun(line, f"slow {number}", connection="1") for number in range(5)]
    mine = await begun(line, "quick", connection="2")
    while not mine.done():
        clock[0] += 1
        await compiler.complete()
    assert len(compiler.began) <= 3
    for call in hostile:
        call.cancel()


async def test_many_calls_of_one_constraint_wait_for_one_compilation():
    """A second caller does not stand where the first one does in its own line."""
    compiler = Stepwise()
    line = CompileLine(compiler)
    first = await begun(line, "first")
    crowd = [await begun(line, "popular", connection=str(number)) for number in range(2000)]
    for _ in range(2):
        await compiler.complete()
    assert len({id(await call) for call in crowd}) == 1
    assert compiler.began == ["first", "popular"]
    await first


async def test_one_constraint_is_another_for_another_model():
    compiler = Stepwise()
    line = CompileLine(compiler)
    calls = [await begun(line, "x"), await begun(line, "x", bundle=OTHER)]
    for _ in range(2):
        await compiler.complete()
    assert await calls[0] is not await calls[1]


async def test_nobody_waits_for_what_is_compiled():
    compiler = Stepwise()
    line = CompileLine(compiler)
    first = await begun(line, "x")
    await compiler.complete()
    others = [await begun(line, f"slow {number}") for number in range(3)]
    assert await line.compile(BUNDLE, regex("x"), Caller("b", "1")) is await first
    for call in others:
        call.cancel()


async def test_a_call_that_leaves_takes_its_constraint_along():
    compiler = Stepwise()
    line = CompileLine(compiler)
    calls = [await begun(line, value) for value in ("x", "y", "z", "z")]
    for call in calls[:3]:
        call.cancel()
    await asyncio.sleep(0)
    while not calls[3].done():
        await compiler.complete()
    assert compiler.began == ["x", "z"]  # x had begun; another call waits for z


async def test_a_call_that_comes_back_waits_for_what_has_begun():
    compiler = Stepwise()
    line = CompileLine(compiler)
    first = await begun(line, "x")
    await asyncio.sleep(0)
    first.cancel()
    second = await begun(line, "x")
    await compiler.complete()
    await second
    assert compiler.began == ["x"]


async def test_errors_reach_all_that_wait_and_the_line_goes_on():
    compiler = Stepwise()
    line = CompileLine(compiler)
    calls = [await begun(line, value) for value in ("bad", "bad", "x")]
    await compiler.complete()
    for call in calls[:2]:
        with pytest.raises(ConstraintError, match="bad"):
            await call
    await compiler.complete()
    await calls[2]


async def test_a_compiler_that_fails_is_asked_again():
    class Failing(Stepwise):
        async def compile(self, vocabulary, pattern):
            if not self.began:
                self.began.append("failed")
                raise OSError("no more processes")
            return await super().compile(vocabulary, pattern)

    compiler = Failing()
    line = CompileLine(compiler)
    calls = [await begun(line, "x"), await begun(line, "y")]
    with pytest.raises(OSError, match="no more processes"):
        await calls[0]
    await compiler.complete()
    await calls[1]


async def test_a_long_line_refuses(monkeypatch):
    monkeypatch.setattr(compile_line, "MOST_WAITING", 5)
    monkeypatch.setattr(compile_line, "MOST_OF_A_CLIENT", 3)
    compiler = Stepwise()
    line = CompileLine(compiler)
    running = await begun(line, "running")
    await asyncio.sleep(0)
    calls = [await begun(line, f"a {number}") for number in range(3)]
    with pytest.raises(WaitingLineFullError, match="3 constraints"):
        await line.compile(BUNDLE, regex("a 4"), Caller("a", "2"))
    calls += [await begun(line, f"b {number}", client="b") for number in range(2)]
    with pytest.raises(WaitingLineFullError, match="5 constraints"):
        await line.compile(BUNDLE, regex("c"), Caller("c", "1"))
    calls.append(await begun(line, "a 1", client="c"))  # waits already
    while not all(call.done() for call in calls):
        await compiler.complete()
    assert await calls[1] is await calls[-1]
    await running


async def test_a_draining_server_refuses_those_that_wait():
    compiler = Stepwise()
    line = CompileLine(compiler)
    calls = [await begun(line, value) for value in ("x", "y")]
    await asyncio.sleep(0)
    line.drain()
    for call in calls:
        with pytest.raises(DrainingError):
            await call
    await compiler.complete()
    assert compiler.began == ["x"]
    with pytest.raises(DrainingError):
        await line.compile(BUNDLE, regex("z"), Caller("a", "1"))
    assert await line.compile(BUNDLE, regex("x"), Caller("a", "1"))  # it costs nothing


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12"), st.integers(0, 5), st.booleans()), max_size=30)
)
def test_every_call_gets_its_automaton_or_leaves_and_nothing_stays(calls):
    """Clients, connections and constraints at random; some leave."""

    async def attempt():
        compiler = Stepwise()
        line = CompileLine(compiler)
        begun_calls = [await begun(line, str(value), client, connection) for client, connection, value, _ in calls]
        for call, (*_, leaves) in zip(begun_calls, calls, strict=True):
            if leaves:
                call.cancel()
        for _ in range(8):
            await compiler.complete()
        for call, (_, _, value, leaves) in zip(begun_calls, calls, strict=True):
            assert call.done()
            if not leaves:
                assert call.result() is compiler.kept[BUNDLE.vocabulary, regex(str(value))]
        assert len(set(compiler.began)) == len(compiler.began)
        left = [line._waiting, line._running, line._working, line._shares._seconds, line._shares._waits]
        assert not any(left)

    asyncio.run(attempt())
