"""The compiler: its process, its cache, and what ends it."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from rill.processes import python_environment
from rill.serve.constraints.compiler import Compiler
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.serve.errors import CompilerError
from rill.vocabulary import UNKNOWN, Vocabulary

CHARACTERS = Vocabulary((UNKNOWN, "\n", *map(chr, range(32, 127))))


@pytest_asyncio.fixture
async def compiler() -> AsyncIterator[Compiler]:
    made = Compiler(seconds=0.3)
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
    assert compiler.cached(CHARACTERS, pattern) is None
    first, *others = await asyncio.gather(*(compiler.compile(CHARACTERS, pattern) for _ in range(10)))
    assert all(other is first for other in others)
    assert await compiler.compile(CHARACTERS, Pattern("regex", "a+b")) is first
    assert compiler.cached(CHARACTERS, pattern) is first
    refused = Pattern("regex", "a(?=b)")
    for _ in range(2):
        with pytest.raises(ConstraintError, match="look-ahead at position 1"):
            await compiler.compile(CHARACTERS, refused)
    with pytest.raises(ConstraintError, match="look-ahead at position 1"):
        compiler.cached(CHARACTERS, refused)


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


async def test_a_cancelled_call_leaves_others_alone(compiler: Compiler) -> None:
    slow = Pattern("regex", "(a|b)*a(a|b){10}c")
    calls = [asyncio.create_task(compiler.compile(CHARACTERS, slow)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    assert (await calls[1]).states == (await calls[2]).states

    hostile = [
        asyncio.create_task(compiler.compile(CHARACTERS, Pattern("regex", f"(a|b)*a(a|b){{{n}}}")))
        for n in range(30, 50)
    ]
    await asyncio.sleep(0)
    for call in hostile:
        call.cancel()
    again = asyncio.create_task(compiler.compile(CHARACTERS, Pattern("regex", "(a|b)*a(a|b){30}")))
    assert (await compiler.compile(CHARACTERS, Pattern("regex", "yes"))).states == 4
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*hostile, return_exceptions=True)
    )
    again.cancel()


def workers() -> list[psutil.Process]:
    """The compiler's processes; other tests may have some of their own."""
    return [each for each in psutil.Process().children() if "rill.serve.constraints.worker" in each.cmdline()]


async def test_a_killed_process_starts_again(compiler: Compiler) -> None:
    for number in range(3):
        assert (await compiler.compile(CHARACTERS, Pattern("regex", f"a{number}"))).states == 3
        [process] = workers()
        process.kill()
        while number == 1 and process.is_running():  # this time, it is known to have ended
            await asyncio.sleep(0.01)
    call = asyncio.create_task(compiler.compile(CHARACTERS, Pattern("regex", "(a|b)*a(a|b){11}d")))
    while not (children := workers()):
        await asyncio.sleep(0.01)
    children[0].kill()
    assert (await call).states == 4097
    await compiler.close()
    assert not workers()


async def test_without_processes_it_is_an_error_of_the_server(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(CompilerError, match="cannot be started"):
        await compiler.compile(CHARACTERS, Pattern("regex", "a"))
    monkeypatch.undo()
    assert (await compiler.compile(CHARACTERS, Pattern("regex", "a"))).states == 2


async def test_the_cache_is_bounded() -> None:
    compiler = Compiler(cache_bytes=200_000)
    first = await compiler.compile(CHARACTERS, Pattern("regex", "a{100}"))  # 39 kB
    assert await compiler.compile(CHARACTERS, Pattern("regex", "a{100}")) is first
    for number in range(101, 106):
        await compiler.compile(CHARACTERS, Pattern("regex", f"a{{{number}}}"))
    assert await compiler.compile(CHARACTERS, Pattern("regex", "a{100}")) is not first
    await compiler.close()


async def test_end_symbols_end_and_nothing_else_is_chosen(compiler: Compiler) -> None:
    vocabulary = Vocabulary((UNKNOWN, "<s>", "</s>", "<end>", "\n", "C", "Cl"), "longest", "<s>", ("</s>", "<end>"))
    automaton = await compiler.compile(vocabulary, Pattern("regex", ".*"))
    assert automaton.transitions.tolist() == [[-1, -1, 1, 1, -1, 0, 0]]
    newline = await compiler.compile(vocabulary, Pattern("regex", ".*", "\n"))
    assert newline.transitions.tolist() == [[-1, -1, -1, -1, 1, 0, 0]]
    for terminator in ("<s>", UNKNOWN, "l", "CC"):
        with pytest.raises(ConstraintError, match="is not one symbol that the model can choose"):
            await compiler.compile(vocabulary, Pattern("regex", "C", terminator))
    with pytest.raises(ConstraintError, match="do not add up"):
        await compiler.compile(vocabulary, Pattern("regex", "l"))


PROGRAM = """
import asyncio, signal, sys
from rill.serve.constraints.compiler import Compiler
from rill.serve.constraints.patterns import Pattern
from rill.serve.errors import CompilerError
from rill.vocabulary import Vocabulary

async def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF, signal.SIGTERM, signal.SIGINT})
    compiler = Compiler()
    automaton = await compiler.compile(Vocabulary(("a", "b")), Pattern("regex", "a|b"))
    call = asyncio.create_task(compiler.compile(Vocabulary(("a", "b")), Pattern("regex", "(a|b)*a(a|b){30}")))
    await asyncio.sleep(0)
    print(automaton.states, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_processes_end_with_the_server_whatever_it_does_with_signals() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=python_environment() | {"PYTHONWARNINGS": ""}
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"2\n"
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
        for child in children:
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGINT)
        server.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_the_process_loads_only_what_it_needs() -> None:
    code = "import sys, rill.serve.constraints.worker; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    modules = set(found.stdout.split())
    assert not modules & {"grpc", "onnxruntime", "google.protobuf", "asyncio", "torch", "rill.serve.operate.server"}
    code = "import sys, rill.serve.constraints.compiler; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "outlines_core" not in found.stdout.split()
