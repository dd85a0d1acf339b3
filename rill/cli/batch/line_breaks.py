"""Texts with line breaks, which a file with a text a line cannot hold: they are ruled out before the first text."""

import math
import re
from collections.abc import Iterable, Mapping

from rill.v1 import rill_pb2 as pb

LINE_BREAKS = "\n", "\r"


_PART = re.compile(r"\\.|\[\^|.", re.DOTALL)  # of a regular expression
_BREAKING = frozenset("\\" + letter for letter in "abfnrtvxuUNsSDW0123456789")  # escapes that may stand for a break


def possible_breaks(request: pb.GenerateRequest) -> list[str]:
    """Return those of LINE_BREAKS that the request does not keep out of its text."""
    stops = () if request.include_stop else request.stop
    biases = request.sampling.logit_bias
    return [
        character
        for character in LINE_BREAKS
        if character not in stops
        and biases.get(character) != -math.inf
        and _may_match(request.sampling.constraint, character)
    ]


def _may_match(constraint: pb.Constraint, character: str) -> bool:
    """Tell whether a text that matches may have this line break; without a constraint, every text may."""
    match constraint.WhichOneof("kind"):
        case "choices":
            return any(character in text for text in constraint.choices.text)
        case "json_schema":
            return False  # JSON without line breaks between its parts, and no string has one
        case "regex":
            parts = _PART.findall(constraint.regex)
            # A range may begin below a line break: with a control character, or an escape.
            may = any(part in _BREAKING or part == "[^" or part < " " for part in parts)
            return may or (character != "\n" and "." in parts)
    return True


def first_break(model: pb.ModelInfo, breaks: Mapping[str, int]) -> tuple[int, str] | None:
    """Return the first line of an input whose texts may have a line break, and the symbol that does it; None if none.

    `breaks` has the first line whose request allows it, for each of LINE_BREAKS.
    """
    found: list[tuple[int, str]] = []
    for symbol in _generated(model):
        if symbol in breaks:
            found.append((breaks[symbol], symbol))
        elif symbol not in LINE_BREAKS and any(character in symbol for character in LINE_BREAKS):
            found.append((1, symbol))  # a stop string does not end inside a symbol
    return min(found, default=None)


def _generated(model: pb.ModelInfo) -> Iterable[str]:
    never = {*model.end_symbols, model.start_symbol}
    return (symbol for symbol in model.vocabulary if symbol not in never)
