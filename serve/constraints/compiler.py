"""Automata for constraints: compiled in a process of their own, and kept."""

import asyncio
import os
import pickle
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from contextlib import suppress

from rill.processes import python_command, python_environment
from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.jobs import Job, read_reply
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.vocabulary import Vocabulary

MAX_STATES = 8192
MAX_ENTRIES = 1 << 21  # states times symbols of the model
SECONDS = 1.0  # of processor time for a pattern
CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 512  # of a cached result, beside its arrays and its pattern
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_Key = tuple[Vocabulary, Pattern]


class Compiler:
    """Compiles patterns for the vocabularies of models, and remembers them.

    The process that does so starts with the first pattern, and again if it ends. Everything runs on one event loop.
    """

    def __init__(
        self,
        *,
        max_states: int = MAX_STATES,
        max_entries: int = MAX_ENTRIES,
        seconds: float = SECONDS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._max_states, self._max_entries, self._seconds = max_states, max_entries, seconds
        self._cache = _Cache(cache_bytes)
        self._running: dict[_Key, asyncio.Task[Automaton]] = {}
        self._waiting: dict[_Key, int] = {}  # callers for each
        self._worker = _Worker()

    def cached(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton | None:
        """Return the automaton of a pattern that has been compiled. Raises ConstraintError if that has failed."""
        found = self._cache.get((vocabulary, pattern))
        if isinstance(found, ConstraintError):
            raise ConstraintError(*found.args)  # each caller has a traceback of its own
        return found

    async def compile(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton:
        """Return the automaton of a pattern over the symbols of a vocabulary.

        Calls for the same pattern share the work, which ends when no call waits for it. Raises ConstraintError.
        """
        key = (vocabulary, pattern)
        if (found := self.cached(vocabulary, pattern)) is not None:
            return found
        terminators = _terminators(vocabulary, pattern)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._compile(key, terminators))
            task.add_done_callback(lambda _: self._running.pop(key))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        except ConstraintError as error:
            raise ConstraintError(*error.args) from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                task.cancel()

    async def _compile(self, key: _Key, terminators: tuple[int, ...]) -> Automaton:
        vocabulary, pattern = key
        texts = ["" if symbol in vocabulary.special_symbols else symbol for symbol in vocabulary.symbols]
        job = Job(pattern, texts, terminators, self._max_states, self._max_entries, self._seconds)
        reply = await self._worker.run(pickle.dumps(job))
        try:
            automaton = read_reply(reply, pattern.kind)
        except ConstraintError as error:
            self._cache.put(key, error)
            raise
        self._cache.put(key, automaton)
        return automaton

    async def close(self) -> None:
        """End the process, and the calls that wait for it."""
        for task in list(self._running.values()):
            task.cancel()
        await self._worker.close()


def _terminators(vocabulary: Vocabulary, pattern: Pattern) -> tuple[int, ...]:
    if pattern.terminator is None:
        newline = vocabulary.id_of("\n")
        return vocabulary.end_ids or (() if newline is None else (newline,))
    if not pattern.terminator:
        return ()
    index = vocabulary.id_of(pattern.terminator)
    if index is None or index in vocabulary.never_ids:
        raise ConstraintError("terminator", f"{pattern.terminator!r} is not one symbol that the model can choose")
    return (index,)


class _Cache:
    """Automata and errors by vocabulary and pattern; what was not used for the longest time goes first."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._entries: OrderedDict[_Key, Automaton | ConstraintError] = OrderedDict()

    def get(self, key: _Key) -> Automaton | ConstraintError | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: _Key, result: Automaton | ConstraintError) -> None:
        self._entries[key] = result
        self._bytes += _size(key, result)
        while self._bytes > self._most:
            self._bytes -= _size(*self._entries.popitem(last=False))


def _size(key: _Key, result: Automaton | ConstraintError) -> int:
    value = key[1].value
    pattern = sum(len(text) for text in ((value,) if isinstance(value, str) else value))
    arrays = result.transitions.nbytes + result.accepting.nbytes if isinstance(result, Automaton) else 0
    return _ENTRY_BYTES + 4 * pattern + arrays


class _Worker:
    """The process, and what it does at the time: one job after the other."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def run(self, job: bytes) -> bytes:
        """Have a job done."""
        async with self._turn:
            for _ in range(2):
                process = await self._started()
                try:
                    return await self._ask(process, job)
                except (OSError, asyncio.IncompleteReadError):  # it has ended: somebody killed it
                    await self._end()
                except asyncio.CancelledError:  # nobody waits for the answer
                    self._kill()
                    raise
        raise ConstraintError("constraint", "the process that compiles constraints ends; ask again")

    async def _started(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *python_command("rill.serve.constraints.worker"),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=python_environment(os.environ | _ONE_THREAD),
            )
        return self._process

    @staticmethod
    async def _ask(process: Process, job: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(len(job).to_bytes(8, "little") + job)
        await process.stdin.drain()
        size = await process.stdout.readexactly(8)
        return await process.stdout.readexactly(int.from_bytes(size, "little"))

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def close(self) -> None:
        await self._end()
