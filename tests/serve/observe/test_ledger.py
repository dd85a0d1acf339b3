"""The ledger writes in order, soon, and never so much at once that streams wait for it."""

import asyncio

from rill.serve.observe.ledger import DELAY_SECONDS, WRITTEN_AT_ONCE, Ledger

COUNT = 3 * WRITTEN_AT_ONCE


async def test_many_entries_are_written_in_parts_and_in_order():
    ledger, written = Ledger(), []
    for number in range(COUNT):
        ledger.note(written.append, number)
    assert written == []
    sizes = [0]
    async with asyncio.timeout(20):
        while len(written) < COUNT:
            if len(written) == WRITTEN_AT_ONCE and sizes[-1] == 0:
                ledger.note(written.append, COUNT)  # the next time
            sizes.append(len(written))
            await asyncio.sleep(0)
    assert max(after - before for before, after in zip(sizes, [*sizes[1:], COUNT], strict=True)) == WRITTEN_AT_ONCE
    assert written == list(range(COUNT))
    await asyncio.sleep(2 * DELAY_SECONDS)
    assert written[COUNT:] == [COUNT]


async def test_settling_writes_everything_at_once():
    ledger, written = Ledger(), []
    for number in range(COUNT):
        ledger.note(written.append, number)
    ledger.settle()
    assert written == list(range(COUNT))


async def test_an_entry_that_fails_affects_no_other():
    ledger, written, faults = Ledger(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    for number in range(COUNT):
        ledger.note(written.append if number % WRITTEN_AT_ONCE else int, str(number) if number else "none")
    await asyncio.sleep(2 * DELAY_SECONDS)
    ledger.note(written.append, "later")
    await asyncio.sleep(2 * DELAY_SECONDS)
    assert [type(fault) for fault in faults] == [ValueError]
    assert written[-1] == "later"
    assert len(written) == COUNT - 3 + 1
