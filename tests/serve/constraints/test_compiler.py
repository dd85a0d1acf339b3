"""The compiler: its process, its cache, and what ends it."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from rill.serve.constraints.compiler import Compiler
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.vocabulary import UNKNOWN, Vocabulary

CHARACTERS = Vocabulary((UNKNOWN, "\n", *map(chr, range(32, 127))))


@pytest_asyncio.fixture
async def compiler() -> AsyncIterator[Compiler]:
    made = Compiler()
    yield made
    await made.close()


async def test_regex_choices_and_terminators(compiler: Compiler) -> None:
    date = await compiler.compile(CHARACTERS, Pattern("regex", r"\d{4}-\d\d-\d\d"))
    assert date.states == 11
    assert date.matches(date.after(0, CHARACTERS.encode("2026-12-01")))
    assert not date.matches(date.after(0, CHARACTERS.encode("2026-12")))

    answers = await compiler.compile(CHARACTERS, Pattern("choices", ("yes", "no", "yesterday")))
    yes = answers.after(0, CHARACTERS.encode("yes"))
    assert answers.matches(yes)
    assert answers.after(yes, CHARACTERS.encode("\n")) == answers.ended
    without = await compiler.compile(CHARACTERS, Pattern("choices", ("yes", "no", "yesterday"), ""))
    assert without.after(without.after(0, CHARACTERS.encode("yes")), CHARACTERS.encode("\n")) == -1

    with pytest.raises(ConstraintError, match="'ab' is not one symbol") as error:
        await compiler.compile(CHARACTERS, Pattern("regex", "a", "ab"))
    assert error.value.part == "terminator"


async def test_calls_share_the_work_and_its_result(compiler: Compiler) -> None:
    pattern = Pattern("regex", "a+b")
    first, *others = await asyncio.gather(*(compiler.compile(CHARACTERS, pattern) for _ in range(10)))
    assert all(other is first for other in others)
    assert await compiler.compile(CHARACTERS, Pattern("regex", "a+b")) is first
    for _ in range(2):
        with pytest.raises(ConstraintError, match="look-ahead at position 1"):
            await compiler.compile(CHARACTERS, Pattern("regex", "a(?=b)"))


async def test_hostile_patterns_end_and_the_next_one_works(compiler: Compiler) -> None:
    with pytest.raises(ConstraintError, match="it takes more than"):
        await compiler.compile(CHARACTERS, Pattern("regex", "(a|b)*a(a|b){30}"))
    with pytest.raises(ConstraintError, match=re.escape("9,001 states; at most 8,192 are allowed")):
        await compiler.compile(CHARACTERS, Pattern("regex", "[ab]{0,9000}"))
    assert (await compiler.compile(CHARACTERS, Pattern("regex", "a"))).states == 2


async def test_a_model_that_lacks_the_characters(compiler: Compiler) -> None:
    with pytest.raises(ConstraintError, match="no symbol of the model has one of 'é', 'è'"):
        await compiler.compile(CHARACTERS, Pattern("regex", "caf(é|è)"))
    assert (await compiler.compile(CHARACTERS, Pattern("regex", "caf(é|e)"))).states == 5
