"""Patterns of careless and hostile callers: an automaton or a ConstraintError, and the event loop goes on."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.compiler import MAX_STATES, Compiler
from rill.serve.constraints.patterns import ConstraintError, Kind, Pattern
from rill.vocabulary import UNKNOWN, Vocabulary

CHARACTERS = Vocabulary((UNKNOWN, "\n", *map(chr, range(32, 127)), "é"))
SYMBOLS = Vocabulary(("<s>", "</s>", "C", "l", "Cl", "Br", "[nH]", "1", "(", ")", "="), "longest", "<s>", ("</s>",))
HELD_SECONDS = 0.1  # of processor time, by the event loop, at most: generous, 0.009 have been seen

HOSTILE = [
    "(a|b)*a(a|b){30}",
    "(.*a){20}",
    "(a{1,100}){1,100}",
    "((a{0,9}){0,9}){0,9}",
    "(a*)*b",
    "(a+)+$",
    "(?:a?){5000}",
    "(x+x+)+y",
    ".{1,8000}",
    "(?:.{0,50}a){30}",
    "[" + "".join(map(chr, range(256, 4000))) + "]",
    "(" * 16_000,
    "()" * 8000,
    "a|" * 8000,
    "|" * 16_000,
    "a{65535}",
    "a{65536}",
    "a{4294967295}",
    "a{4294967294}",
    "a{9999999999}",
    "a{" + "9" * 5000 + "}",
    "(?P<a>" * 2000,
    r"\N{" + "A" * 9000 + "}",
    r"(a)\1",
    r"\1",
    r"(?P<a>b)(?P=a)",
    "(?R)",
    "(?1)",
    r"\b\b",
    r"\Z\Z",
    "^^",
    "$$",
    "a^b",
    "(?=a)" * 3000,
    "(?<!a)b",
    "(?i)a",
    "(?-i:a)",
    "(?x: a #)",
    "(?#",
    "[",
    "[]",
    "[^]",
    "[[:alpha:]]",
    r"\p{L}",
    r"\udead",
    "\0",
    "a\0b",
    r"[\ud800-\udfff]",
    "\U0010ffff",
    r"\x",
    "\\",
    "*",
    "+",
    "?",
    "{",
    "}",
    "a**",
    "a{2,1}",
    "(?:",
    ")",
    "(?P<1>a)",
    "(?P<a>x)(?P<a>y)",
    "(?(1)a|b)",
    "(?>a)",
    "a++",
    "a{1}+",
    "[a-\\d]",
    "[z-a]",
    "(?:(?:a{1000}){1000}){1000}",
    "((((a|b){2}){2}){2}){2}" * 20,
    "(a?){60}a{60}",
    r"(\w+\s?)*",
    "é" * 8000,
    "中" * 5000,
    "(a|b|c|d|e)*(f|g){1,200}(h|[^x]){50}",
    "(.?){9}" * 500,
    "(?:a|(?:a|(?:a|(?:a|b)*)*)*)*" * 99,
    "(?:)" * 4000,
    "(|a)+" * 3000,
]


@pytest_asyncio.fixture
async def compiler() -> AsyncIterator[Compiler]:
    made = Compiler(seconds=0.2)
    yield made
    await made.close()


def _random_regex(chance: random.Random) -> str:
    pieces = [
        *"abCl1()[]{}|*+?.^$\\-,é\n",
        r"\d",
        r"\w",
        "[^a]",
        "(?:",
        "{2,",
        "{3}",
        "(?=",
        r"\1",
        "Cl",
        "{1,40}",
        "(a|b)",
    ]
    text = "".join(chance.choices(pieces, k=chance.randint(0, 25)))
    return text if chance.random() < 0.5 else f"({text.replace('(', '').replace(')', '')}){{{chance.randint(0, 99)}}}"


def _random_schema(chance: random.Random, depth: int = 0) -> object:
    keywords = [
        "type",
        "properties",
        "items",
        "enum",
        "minLength",
        "pattern",
        "anyOf",
        "$ref",
        "required",
        "maximum",
        "x",
    ]
    values: list[object] = [
        1,
        -1,
        None,
        True,
        "string",
        "object",
        "array",
        [],
        {},
        "#",
        "a{9}",
        ["string", "null"],
        1e30,
    ]
    if depth > 3 or chance.random() < 0.3:
        return chance.choice(values)
    if chance.random() < 0.2:
        return [_random_schema(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    names = chance.choices([*keywords, "a"], k=chance.randint(0, 4))
    return {name: _random_schema(chance, depth + 1) for name in names}


def _random_pattern(chance: random.Random) -> tuple[Kind, str | tuple[str, ...]]:
    kind = chance.random()
    if kind < 0.01:
        return "regex", chance.choice(HOSTILE)
    if kind < 0.7:
        return "regex", _random_regex(chance)
    if kind < 0.85:
        return "choices", tuple(
            "".join(chance.choices("abCl1é\0", k=chance.randint(0, 6))) for _ in range(chance.randint(1, 9))
        )
    text = json.dumps(_random_schema(chance))
    return "json_schema", text if chance.random() < 0.8 else text[: chance.randint(0, len(text))]


class _Held:
    """The longest that one callback has held the event loop, in seconds of processor time of its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.longest = 0.0
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            started = time.thread_time()
            run(handle)
            self.longest = max(self.longest, time.thread_time() - started)

        monkeypatch.setattr(asyncio.Handle, "_run", timed)


async def _outcome(
    compiler: Compiler, vocabulary: Vocabulary, kind: Kind, value: str | tuple[str, ...]
) -> Automaton | ConstraintError:
    try:
        automaton = await compiler.compile(vocabulary, Pattern(kind, value))
    except ConstraintError as error:
        assert "\n" not in str(error)  # noqa: PT017  # for some patterns, not for all
        assert len(str(error)) < 500  # noqa: PT017
        return error
    assert 1 <= automaton.states <= MAX_STATES
    assert automaton.transitions.min() >= -1
    assert automaton.transitions.max() <= automaton.states
    return automaton


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_hostile_patterns_one_by_one(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    held = _Held(monkeypatch)
    for pattern in HOSTILE:
        await _outcome(compiler, CHARACTERS, "regex", pattern)
    for size in (70_000, 1 << 20):
        for kind in ("regex", "json_schema"):
            assert isinstance(await _outcome(compiler, CHARACTERS, kind, "a" * size), ConstraintError)
        assert isinstance(await _outcome(compiler, CHARACTERS, "choices", ("a",) * size), ConstraintError)
    await _outcome(compiler, CHARACTERS, "choices", tuple(f"{number:05}" for number in range(13_000)))
    await _outcome(compiler, CHARACTERS, "choices", ("a" * 60_000, "b"))
    await _outcome(compiler, CHARACTERS, "json_schema", json.dumps({"enum": list(range(10_000))}))
    assert held.longest < HELD_SECONDS


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_thousand_random_patterns(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(21)
    held, largest = _Held(monkeypatch), 0
    counts = {Automaton: 0, ConstraintError: 0}
    for _ in range(50):
        patterns = [_random_pattern(chance) for _ in range(20)]
        vocabulary = chance.choice([CHARACTERS, SYMBOLS])
        for outcome in await asyncio.gather(*(_outcome(compiler, vocabulary, *each) for each in patterns)):
            counts[type(outcome)] += 1
        workers = [each for each in psutil.Process().children() if "rill.serve.constraints.worker" in each.cmdline()]
        largest = max([largest, *(each.memory_info().rss for each in workers)])
    print(f"{counts}; held for {held.longest * 1000:.1f} ms of processor time; {largest >> 20} MB")
    assert min(counts.values()) > 100
    assert held.longest < HELD_SECONDS
    assert largest < 150 << 20  # it does not grow: jobs run in forks
