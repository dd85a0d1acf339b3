"""What a text must match: read from a request or a token, compiled for a model, and checked against the biases."""

import asyncio
import zlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
from google.protobuf.message import DecodeError

from rill.serve.api.compile_line import Caller, CompileLine
from rill.serve.constraints.automaton import FORBIDDEN, Automaton
from rill.serve.constraints.patterns import ConstraintError, Pattern
from rill.serve.engine.types import StreamSpec
from rill.serve.errors import CompilerError, NoConstraintsError, RequestError, TokenError
from rill.serve.models.model import Model
from rill.v1 import rill_pb2 as pb
from rill.vocabulary import Vocabulary

FIELD = "sampling.constraint"
MOST_CHOICES = 2**16
UNPACKED_BYTES = 2**20  # of a message: more than any constraint takes
CHECKED_AT_ONCE = 2**17  # entries of an automaton: fractions of a millisecond
SHOWN_SYMBOLS = 5  # in an error message
_NO_TABLES = nullcontext()
_RAW = -zlib.MAX_WBITS  # without header and checksum: tokens are authenticated


def pattern_of(message: pb.Constraint) -> Pattern | None:
    """Read a constraint; None for an empty one. Raises RequestError for one that is too large or of no known kind."""
    terminator = message.terminator if message.HasField("terminator") else None
    kind = message.WhichOneof("kind")
    choices = message.choices.text
    if len(choices) > MOST_CHOICES:
        raise RequestError(f"{FIELD}.choices", f"choices: there are {len(choices)}; the limit is {MOST_CHOICES}")
    if kind is not None:
        try:
            return Pattern(kind, tuple(choices) if kind == "choices" else getattr(message, kind), terminator)
        except ConstraintError as error:
            raise _refusal(error) from None
    if terminator is not None:
        raise RequestError(f"{FIELD}.terminator", "terminator: there is no regex, choices or json_schema for it to end")
    if message.ByteSize():  # a field of a later version
        raise RequestError(FIELD, "constraint: this server knows regex, choices and json_schema only")
    return None


def _refusal(error: ConstraintError) -> RequestError:
    return RequestError(f"{FIELD}.{error.part}", f"{error.part}: {error}")


def packed(pattern: Pattern) -> bytes:
    """Return a constraint as it is in tokens: a compressed rill.v1.Constraint."""
    message = pb.Constraint(terminator=pattern.terminator)
    if pattern.kind == "choices":
        message.choices.text.extend(pattern.value)
    else:
        setattr(message, pattern.kind, pattern.value)
    return zlib.compress(message.SerializeToString(), 1, _RAW)


def unpacked(data: bytes) -> Pattern:
    """Return the constraint of a token. Raises TokenError."""
    unpacker, pattern = zlib.decompressobj(_RAW), None
    try:
        content = unpacker.decompress(data, UNPACKED_BYTES)
        if unpacker.eof and not unpacker.unused_data:
            pattern = pattern_of(pb.Constraint.FromString(content))
    except (zlib.error, DecodeError, RequestError):
        pass
    if pattern is None:
        raise TokenError("INVALID", "the resume token has a constraint that this server cannot read")
    return pattern


async def constrained(
    spec: StreamSpec, pattern: Pattern, model: Model, line: CompileLine, caller: Caller, is_from_token: bool
) -> StreamSpec:
    """Return `spec`, whose constraint is `pattern`, with its automaton.

    Raises RequestError for a constraint that cannot be met, TokenError if it and the state are of a token and cannot be
    right, NoConstraintsError if the model's bundle has no graphs for constraints, WaitingLineFullError and
    DrainingError; CompilerError.
    """
    automaton = spec.automaton
    if automaton is None:
        if not model.supports_constraints:
            raise NoConstraintsError(
                f"bundle {model.bundle.name!r} was exported before constraints; export its run again"
            )
        try:
            automaton = await line.compile(model.bundle, pattern, caller)
        except OSError as error:
            raise CompilerError(f"the process that compiles constraints cannot be started: {error.strerror}") from error
        except ConstraintError as error:
            if error.part == "constraint":
                raise CompilerError(str(error)) from error
            if is_from_token:
                raise TokenError("INVALID", f"the constraint of the resume token cannot be used: {error}") from None
            raise _refusal(error) from None
        if spec.automaton_state > automaton.ended:
            raise TokenError("INVALID", "the resume token is at a state that its constraint does not have")
    await _require_choice(spec.sampling.logit_bias, automaton, model.bundle.vocabulary)
    return replace(spec, automaton=automaton)


def tables_of(spec: StreamSpec, model: Model) -> AbstractAsyncContextManager[None]:
    """Return a context in which the engine has the tables of a stream's automaton, if it has one."""
    return _Tables(model, spec.automaton) if spec.automaton else _NO_TABLES


class _Tables(AbstractAsyncContextManager[None]):
    """`tables_of`. Entering may have to wait until other streams have ended."""

    def __init__(self, model: Model, automaton: Automaton) -> None:
        self._model, self._automaton = model, automaton

    async def __aenter__(self) -> None:
        await self._model.automata.acquire(self._automaton)

    async def __aexit__(self, *_: object) -> None:
        self._model.automata.release(self._automaton)


async def _require_choice(logit_bias: Mapping[int, float], automaton: Automaton, vocabulary: Vocabulary) -> None:
    """Raise RequestError if the biases ban all symbols that an automaton allows in one of its states."""
    banned = [symbol for symbol, bias in logit_bias.items() if bias == -np.inf]
    if not banned:
        return
    if automaton.transitions.size <= CHECKED_AT_ONCE:
        state = _state_without_choice(banned, automaton)
    else:
        state = await asyncio.to_thread(partial(_state_without_choice, banned, automaton))
    if state is not None:
        allowed = np.flatnonzero(automaton.transitions[state] != FORBIDDEN).tolist()
        names = [repr(vocabulary.symbols[symbol]) for symbol in allowed[:SHOWN_SYMBOLS]]
        more = f" and {len(allowed) - SHOWN_SYMBOLS} more" if len(allowed) > SHOWN_SYMBOLS else ""
        raise RequestError(
            "sampling.logit_bias",
            f"logit_bias bans all that the constraint allows at some point of a text: {', '.join(names)}{more}",
        )


def _state_without_choice(banned: list[int], automaton: Automaton) -> int | None:
    """Return the first state that allows symbols, but only banned ones."""
    is_kept = np.ones(automaton.symbols, bool)
    is_kept[banned] = False
    has_none = ~(automaton.transitions[:, is_kept] != FORBIDDEN).any(axis=1) & ~automaton.is_final[:-1]
    return int(has_none.argmax()) if has_none.any() else None
