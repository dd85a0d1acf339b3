"""Texts with line breaks, which a file with a text a line cannot hold: they are ruled out before the first text."""

import math
from collections.abc import Iterable, Mapping

from rill.v1 import rill_pb2 as pb

LINE_BREAKS = "\n", "\r"


def possible_breaks(request: pb.GenerateRequest) -> list[str]:
    """Return those of LINE_BREAKS that the request does not keep out of its text."""
    stops = () if request.include_stop else request.stop
    biases = request.sampling.logit_bias
    return [character for character in LINE_BREAKS if character not in stops and biases.get(character) != -math.inf]


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
