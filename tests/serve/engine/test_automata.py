"""The tables of automata: rows that are right, disjoint and bounded, whoever comes and goes."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from automata import random_automaton, sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.engine.automata import COMPLETE, ENDED, FIRST_ROWS, GOES_ON, Automata, DeviceTables
from rill.serve.errors import RequestError
from rill.vocabulary import UNKNOWN, Vocabulary

VOCABULARY = Vocabulary((UNKNOWN, *"\nabcd"))
SYMBOLS = len(VOCABULARY)
ROW_BYTES = 4 * SYMBOLS + 8 * SYMBOLS + 4 + 1 + 1


def automata_of(rows, kept=0):
    return Automata(VOCABULARY, rows * ROW_BYTES, kept * ROW_BYTES)


def automaton_of(states, seed=0):
    return random_automaton(SYMBOLS, states, seed, terminator=1, never=[0])


def check_rows(automata, automaton):
    """The rows of an automaton say what it says."""
    n, base = automaton.states, automata.base(automaton)
    rows = {name: values[base : base + n + 1] for name, values in vars(automata.tables).items()}
    followers = np.vstack([automaton.transitions, np.full(SYMBOLS, FORBIDDEN)])
    final = (followers == FORBIDDEN).all(axis=1)
    itself = np.arange(n + 1)[:, None]
    allowed = (followers != FORBIDDEN) | final[:, None]
    assert (rows["allowed"] == np.where(allowed, 0, -np.inf)).all()
    after = np.where(final[:, None], itself, followers)
    assert (rows["transitions"] - base)[allowed].tolist() == after[allowed].tolist()
    assert ((base <= rows["transitions"]) & (rows["transitions"] <= base + n)).all()
    assert (rows["continues"][:, 0] == ~final).all()
    assert rows["reads"][:, 0].tolist() == [True] * n + [False]
    assert rows["ends"].tolist() == [COMPLETE if each else GOES_ON for each in final[:n]] + [ENDED]


def check_free_row(automata):
    tables = automata.tables
    assert tables.allowed[0].tolist() == [-np.inf] + [0] * (SYMBOLS - 1)
    assert not tables.transitions[0].any()
    assert (tables.continues[0, 0], tables.reads[0, 0], tables.ends[0]) == (1, True, GOES_ON)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def settle():
    """Let all tasks go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_any_sequence_of_users_keeps_regions_apart_and_right(data):
    """Some wait, some give up, some are served at the moment at which they give up; no room is lost."""
    rows = data.draw(st.sampled_from([40, 300, 700, 2000]))
    kept = data.draw(st.sampled_from([0, rows // 4]))
    largest = max(rows - 2, 1)
    sizes = data.draw(st.lists(st.integers(1, largest) | st.integers(1, min(largest, 60)), min_size=1, max_size=8))

    async def scenario():
        automata, users = automata_of(rows, kept), []  # (automaton, task)
        known = [automaton_of(states, seed) for seed, states in enumerate(sizes)]
        for _ in range(data.draw(st.integers(1, 40))):
            if users and data.draw(st.booleans()):
                automaton, task = users.pop(data.draw(st.integers(0, len(users) - 1)))
                if task.done():
                    automata.release(automaton)
                elif data.draw(st.booleans()):
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                else:  # it is cancelled when its turn may have come already
                    served = next((other for other in users if other[1].done()), None)
                    if served:
                        users.remove(served)
                        automata.release(served[0])
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            else:
                automaton = data.draw(st.sampled_from(known))
                users.append((automaton, asyncio.create_task(automata.acquire(automaton))))
            await settle()
            held = {automaton for automaton, task in users if task.done()}
            spans = sorted((automata.base(each), automata.base(each) + each.states + 1) for each in held)
            assert all(begin > 0 for begin, _ in spans)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
            assert all(end <= len(automata.tables) <= rows for _, end in spans)
            for each in held:
                check_rows(automata, each)
            assert automata.waiting == sum(not task.done() for _, task in users)
            assert held or not users  # somebody is always served
        check_free_row(automata)
        while users:
            served = next(user for user in users if user[1].done())
            users.remove(served)
            automata.release(served[0])
            await settle()
        largest_one = automaton_of(rows - 2)
        await automata.acquire(largest_one)  # all room is there again
        check_rows(automata, largest_one)

    run(scenario())


def test_an_automaton_that_is_in_use_is_not_written_again():
    async def scenario():
        automata, automaton = automata_of(1000, kept=500), automaton_of(30)
        await automata.acquire(automaton)
        changes, base = automata.changes, automata.base(automaton)
        await automata.acquire(automaton)
        automata.release(automaton)
        automata.release(automaton)
        await automata.acquire(automaton)  # it was kept
        assert (automata.changes, automata.base(automaton)) == (changes, base)

    run(scenario())


def test_the_least_recently_used_automaton_leaves_first():
    async def scenario():
        automata = automata_of(FIRST_ROWS, kept=FIRST_ROWS)
        first, second, third = (automaton_of(100, seed) for seed in range(3))
        for automaton in (first, second, first):  # so the second has waited longest
            await automata.acquire(automaton)
            automata.release(automaton)
        await automata.acquire(third)
        changes = automata.changes
        await automata.acquire(first)
        assert automata.changes == changes
        await asyncio.wait_for(automata.acquire(second), 0.01)

    with pytest.raises(TimeoutError):
        run(scenario())


def test_callers_without_room_are_served_in_order():
    async def scenario():
        automata, served = automata_of(100), []
        holder = automaton_of(90)
        await automata.acquire(holder)

        async def user(number, states):
            automaton = automaton_of(states, number)
            await automata.acquire(automaton)
            served.append(number)
            automata.release(automaton)

        tasks = [asyncio.create_task(user(number, states)) for number, states in enumerate([95, 5, 90, 5])]
        await settle()
        assert (served, automata.waiting) == ([], 4)  # the small ones do not overtake
        await automata.acquire(holder)  # it is there
        automata.release(holder)
        automata.release(holder)
        await asyncio.gather(*tasks)
        assert served == [0, 1, 2, 3]

    run(scenario())


def test_those_behind_a_caller_that_gives_up_are_served():
    async def scenario():
        automata, holder = automata_of(100), automaton_of(50)
        await automata.acquire(holder)
        large = asyncio.create_task(automata.acquire(automaton_of(95, 1)))
        small = asyncio.create_task(automata.acquire(automaton_of(5, 2)))
        await settle()
        assert not small.done()
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        await small

    run(scenario())


def test_an_automaton_that_can_never_fit_is_refused_at_once():
    async def scenario():
        automata = automata_of(100)
        await automata.acquire(automaton_of(98))
        with pytest.raises(RequestError, match="99 states, too many for this model: at most 98 fit") as caught:
            await automata.acquire(automaton_of(99))
        assert caught.value.field == "sampling.constraint"
        assert not automata.waiting

    run(scenario())


def test_a_large_automaton_is_written_while_others_have_their_turn():
    """Nobody waits for it but its own users, and one who gives up meanwhile does not stop it."""

    async def scenario():
        automata, turns = automata_of(100_000, kept=100_000), 0
        large = Automaton(np.full((60_000, SYMBOLS), 7, np.int32), np.zeros(60_000, bool))
        first = asyncio.create_task(automata.acquire(large))
        second = asyncio.create_task(automata.acquire(large))
        small = automaton_of(10)
        await automata.acquire(small)
        await asyncio.sleep(0)
        first.cancel()
        while not second.done():
            await asyncio.sleep(0)
            turns += 1
        assert first.cancelled()
        assert turns >= 4
        base, tables = automata.base(large), automata.tables
        assert (tables.continues[base : base + 59_999] == 1).all()
        assert tables.ends[base + 60_000] == ENDED
        check_rows(automata, small)

    run(scenario())


def test_growth_keeps_what_is_there_and_the_memory_of_rounds_in_progress():
    async def scenario():
        automata, first = automata_of(10_000), automaton_of(50)
        await automata.acquire(first)
        before = automata.tables
        base = automata.base(first)
        old = before.transitions[base : base + 51].copy()
        others = [automaton_of(200, seed) for seed in range(1, 20)]
        for automaton in others:
            await automata.acquire(automaton)
        assert len(automata.tables) > len(before) == FIRST_ROWS
        assert (before.transitions[base : base + 51] == old).all()
        for automaton in (first, *others):
            check_rows(automata, automaton)
            automata.release(automaton)
        assert len(automata.tables) == FIRST_ROWS  # the memory has returned
        check_free_row(automata)

    run(scenario())


def test_the_memory_of_the_tables_is_bound_and_not_copied():
    async def scenario():
        automata = automata_of(10_000, kept=10_000)
        device = DeviceTables(automata, "cpu", 0)
        values = device.values()
        assert set(values) == {"allowed", "transitions", "continues", "reads"}
        for name, array in automata.tables.inputs().items():
            assert np.shares_memory(values[name].numpy(), array)
        await automata.acquire(automaton_of(10))
        assert device.values() is values  # the same memory
        await automata.acquire(automaton_of(1000))
        assert device.values() is not values
        assert len(device.values()["allowed"].numpy()) == len(automata.tables)

    run(scenario())


def test_a_device_gets_a_copy_when_something_was_written():
    """As on a GPU: here the copy is made by a stand-in that has the CPU's memory."""

    async def scenario():
        automata, automaton = automata_of(10_000, kept=10_000), sequence(VOCABULARY, "ab", "cd")
        device = DeviceTables(automata, "cuda", 0)
        copies = []
        device._copy = lambda values: copies.append(values.copy())
        device.values()
        device.values()
        assert len(copies) == 4
        await automata.acquire(automaton)
        await automata.acquire(automaton)
        device.values()
        device.values()
        assert len(copies) == 8
        assert (copies[4] == automata.tables.allowed).all()

    run(scenario())
