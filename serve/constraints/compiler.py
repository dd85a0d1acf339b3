"""Automata for constraints: compiled in a process of their own, and kept."""

import asyncio
from collections import OrderedDict
from functools import partial

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.jobs import UnfinishedError, pack_job, pack_texts, read_reply
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.serve.constraints.process import CompilerProcess
from rill.vocabulary import Vocabulary

MAX_STATES = 8192
MAX_ENTRIES = 1 << 21  # states times symbols of the model
SECONDS = 1.0  # of processor time for a pattern
CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 512  # of a cached result, beside its arrays and its pattern
_VOCABULARIES = 8  # of which the packed symbols are kept

_Key = tuple[Vocabulary, Pattern]


class Compiler:
    """Compiles patterns for the vocabularies of models, and remembers them; used on one event loop."""

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
        self._waiting: dict[asyncio.Task[Automaton], int] = {}  # callers for each
        self._texts: OrderedDict[Vocabulary, bytes] = OrderedDict()
        self._process = CompilerProcess()

    def cached(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton | None:
        """Return the automaton of a pattern that has been compiled. Raises ConstraintError if that has failed."""
        found = self._cache.get((vocabulary, pattern))
        if isinstance(found, ConstraintError):
            raise ConstraintError(*found.args)  # each caller has a traceback of its own
        return found

    async def compile(self, vocabulary: Vocabulary, pattern: Pattern) -> Automaton:
        """Return the automaton of a pattern over the symbols of a vocabulary.

        Calls for the same pattern share the work, which ends when no call waits for it. Raises ConstraintError, and
        CompilerError if the process that compiles cannot be started.
        """
        if (found := self.cached(vocabulary, pattern)) is not None:
            return found
        key = (vocabulary, pattern)
        if len(vocabulary) > self._max_entries:
            raise ConstraintError(
                pattern.kind, f"the model has {len(vocabulary):,} symbols; constraints are for {self._max_entries:,}"
            )
        terminators = _terminators(vocabulary, pattern)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._compile(key, terminators))
            task.add_done_callback(partial(self._forget, key))
        self._waiting[task] = self._waiting.get(task, 0) + 1
        try:
            return await asyncio.shield(task)
        except ConstraintError as error:
            raise ConstraintError(*error.args) from None
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                if not task.done():
                    task.cancel()
                    self._forget(key, task)  # another call begins anew

    def _forget(self, key: _Key, task: asyncio.Task[Automaton]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if task.done() and not task.cancelled():
            task.exception()  # even if no call waits for it any more

    async def _compile(self, key: _Key, terminators: tuple[int, ...]) -> Automaton:
        vocabulary, pattern = key
        job = pack_job(
            self._packed(vocabulary), pattern, terminators, self._max_states, self._max_entries, self._seconds
        )
        try:
            automaton = read_reply(await self._process.run(job))
        except UnfinishedError as error:
            failure = ConstraintError(pattern.kind, str(error))
            if error.known:
                self._cache.put(key, failure)
            raise failure from None
        except ConstraintError as error:
            self._cache.put(key, error)
            raise
        self._cache.put(key, automaton)
        return automaton

    def _packed(self, vocabulary: Vocabulary) -> bytes:
        packed = self._texts.pop(vocabulary, None)
        if packed is None:
            special = vocabulary.special_symbols
            packed = pack_texts(["" if symbol in special else symbol for symbol in vocabulary.symbols])
        self._texts[vocabulary] = packed
        if len(self._texts) > _VOCABULARIES:
            self._texts.popitem(last=False)
        return packed

    async def close(self) -> None:
        """End the process, and the calls that wait for it."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._process.close()


def _terminators(vocabulary: Vocabulary, pattern: Pattern) -> tuple[int, ...]:
    if pattern.terminator is None:
        newline = vocabulary.id_of("\n")
        return vocabulary.end_ids or (() if newline is None or newline in vocabulary.never_ids else (newline,))
    if not pattern.terminator:
        return ()
    index = vocabulary.id_of(pattern.terminator)
    if index is None or index in vocabulary.never_ids:
        raise ConstraintError("terminator", f"{pattern.terminator[:20]!r} is not one symbol that the model can choose")
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
        if key in self._entries:
            self._bytes -= _size(key, self._entries.pop(key))
        self._entries[key] = result
        self._bytes += _size(key, result)
        while self._bytes > self._most:
            self._bytes -= _size(*self._entries.popitem(last=False))


def _size(key: _Key, result: Automaton | ConstraintError) -> int:
    value = key[1].value
    pattern = sum(len(text) for text in ((value,) if isinstance(value, str) else value))
    arrays = result.transitions.nbytes + result.accepting.nbytes if isinstance(result, Automaton) else 0
    return _ENTRY_BYTES + 4 * pattern + arrays
