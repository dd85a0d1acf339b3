"""What the server and the process that compiles constraints tell each other.

Eight bytes with the length come before each job and each reply. A job is pickled. A reply is a line of JSON, then the
arrays of an automaton, if there is one. CANCEL, instead of a job, ends the one that is being done.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.patterns import ConstraintError, Pattern

LENGTH = 8  # bytes
CANCEL = bytes(LENGTH)
_LONGEST = 300  # characters of a message


@dataclass(frozen=True)
class Job:
    """A pattern to compile. `texts` has what each symbol of the model is in a text, "" for those that no text has;
    `terminators` are the ids of those that may end it.
    """

    pattern: Pattern
    texts: Sequence[str]
    terminators: Sequence[int]
    max_states: int
    max_entries: int
    seconds: float  # of processor time


class UnfinishedError(Exception):
    """A job did not finish; the message says why, and `known` whether it will always be so."""

    def __init__(self, message: str, known: bool) -> None:
        super().__init__(message, known)  # what a copy is made of
        self.known = known

    def __str__(self) -> str:
        return str(self.args[0])


def framed(message: bytes) -> bytes:
    """Put the length before a message."""
    return len(message).to_bytes(LENGTH, "little") + message


def is_whole(frame: bytes) -> bool:
    """Whether a frame has all its bytes."""
    return len(frame) == LENGTH + int.from_bytes(frame[:LENGTH], "little")


def automaton_reply(automaton: Automaton) -> bytes:
    """Pack an automaton."""
    header = {"states": automaton.states, "symbols": automaton.symbols}
    return _line(header) + automaton.transitions.tobytes() + automaton.accepting.tobytes()


def error_reply(error: ConstraintError) -> bytes:
    """Pack the reason why there is no automaton, without most of what it quotes if that is long."""
    message = str(error)
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST * 2 // 3]}…{message[-_LONGEST // 3 :]}"
    return _line({"part": error.part, "message": message})


def unfinished_reply(message: str, known: bool = True) -> bytes:
    """Pack the reason why a job did not finish."""
    return _line({"unfinished": message, "known": known})


def _line(header: Mapping[str, object]) -> bytes:
    return json.dumps(header).encode() + b"\n"


def read_reply(reply: bytes) -> Automaton:
    """Return the automaton of a reply. Raises ConstraintError or UnfinishedError for another one."""
    line, _, arrays = reply.partition(b"\n")
    header = json.loads(line)
    if "unfinished" in header:
        raise UnfinishedError(header["unfinished"], header["known"])
    if "message" in header:
        raise ConstraintError(header["part"], header["message"])
    states, symbols = header["states"], header["symbols"]
    transitions = np.frombuffer(arrays, np.int32, states * symbols).reshape(states, symbols)
    return Automaton(transitions, np.frombuffer(arrays, np.bool_, states, offset=transitions.nbytes))


def pack_texts(texts: Sequence[str]) -> bytes:
    """Pack the symbols of a model, once for all its jobs."""
    return pickle.dumps(texts)


def pack_job(texts: bytes, pattern: Pattern, terminators: Sequence[int], *limits: float) -> bytes:
    """Pack a job; the limits are those of `Job`, in their order."""
    return pickle.dumps((texts, pattern, terminators, limits))


def unpack_job(packed: bytes) -> Job:
    """Unpack what the server has packed."""
    texts, pattern, terminators, (max_states, max_entries, seconds) = pickle.loads(packed)
    return Job(pattern, pickle.loads(texts), terminators, max_states, max_entries, seconds)
