"""What the server and the process that compiles constraints tell each other.

A job is pickled. A reply is a line of JSON, then the arrays of an automaton, if there is one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.patterns import ConstraintError, Pattern


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


def automaton_reply(automaton: Automaton) -> bytes:
    """Pack an automaton."""
    header = {"states": automaton.states, "symbols": automaton.symbols}
    return _line(header) + automaton.transitions.tobytes() + automaton.accepting.tobytes()


def error_reply(error: ConstraintError) -> bytes:
    """Pack the reason why there is no automaton."""
    return _line({"part": error.part, "message": str(error)})


def failure_reply(message: str) -> bytes:
    """Pack the end of a job that did not finish."""
    return _line({"failure": message})


def _line(header: dict[str, int] | dict[str, str]) -> bytes:
    return json.dumps(header).encode() + b"\n"


def read_reply(reply: bytes, part: str) -> Automaton:
    """Return the automaton of a reply; raises ConstraintError for another reply. `part` is what was compiled."""
    line, _, arrays = reply.partition(b"\n")
    header = json.loads(line)
    if "failure" in header:
        raise ConstraintError(part, header["failure"])
    if "message" in header:
        raise ConstraintError(header["part"], header["message"])
    states, symbols = header["states"], header["symbols"]
    transitions = np.frombuffer(arrays, np.int32, states * symbols).reshape(states, symbols)
    return Automaton(transitions, np.frombuffer(arrays, np.bool_, states, offset=transitions.nbytes))
