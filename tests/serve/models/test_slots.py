"""The slots of a model and their waiting line."""

import asyncio

import pytest

from rill.serve.errors import DrainingError, WaitingLineFullError
from rill.serve.models.slots import Slots


async def test_a_slot_given_at_the_moment_of_cancellation_is_not_lost():
    slots = Slots(1, 2)
    slot = await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release(slot)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.running == 0
    assert await slots.acquire() == slot


async def test_the_waiting_line_is_first_come_first_served_and_bounded():
    slots = Slots(1, 2)
    slot = await slots.acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(WaitingLineFullError):
        await slots.acquire()
    slots.release(slot)
    assert await waiting[0] == slot
    assert not waiting[1].done()
    slots.refuse_waiting(DrainingError("going away"))
    with pytest.raises(DrainingError):
        await waiting[1]
