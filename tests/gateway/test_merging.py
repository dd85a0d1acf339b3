"""Streams that are read as one."""

import asyncio
from contextlib import aclosing

import pytest

from rill.gateway.api.merging import merged


class FullError(Exception):
    pass


class Room:
    """Gives sources that need one of its places while they run."""

    def __init__(self, places):
        self.places, self.most, self.running, self.closed = places, 0, 0, 0

    def source(self, number, parts=3):
        async def run():
            await asyncio.sleep(0)
            if self.running == self.places:
                raise FullError
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                for part in range(parts):
                    await asyncio.sleep(0)
                    yield number, part
            finally:
                self.running -= 1
                self.closed += 1

        return run


async def collected(sources, at_once, **more):
    return [part async for part in merged(sources, at_once, **more)]


@pytest.mark.parametrize("at_once", [1, 3, 20])
async def test_all_parts_arrive_in_order_of_each(at_once):
    room = Room(20)
    parts = await collected([room.source(number) for number in range(8)], at_once)
    assert sorted(parts) == [(number, part) for number in range(8) for part in range(3)]
    for number in range(8):
        assert [part for one, part in parts if one == number] == [0, 1, 2]
    assert room.most <= at_once


@pytest.mark.parametrize("places", [1, 2, 5])
async def test_a_source_that_finds_no_place_waits_for_another_to_end(places):
    room = Room(places)
    sources = [room.source(number) for number in range(8)]
    parts = await collected(sources, 8, is_full=lambda error: isinstance(error, FullError))
    assert sorted(parts) == [(number, part) for number in range(8) for part in range(3)]


async def test_a_source_alone_without_a_place_fails():
    with pytest.raises(FullError):
        await collected([Room(0).source(0), Room(0).source(1)], 2, is_full=lambda error: True)


async def test_an_error_ends_all():
    room = Room(3)

    async def broken():
        yield 9, 0
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await collected([room.source(0, 10**6), broken, room.source(1, 10**6)], 3)
    assert (room.running, room.closed) == (0, 2)


async def test_leaving_ends_all():
    room = Room(3)
    async with aclosing(merged([room.source(0, 10**6), room.source(1, 10**6)], 2)) as parts:
        await anext(parts)
    assert (room.running, room.closed) == (0, 2)
