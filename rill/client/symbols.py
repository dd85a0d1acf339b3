"""The symbols of a generated text. Positions count them, and where they may be longer than one code point, servers send
their lengths. Servers that do not know of such models send none: their symbols are code points.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import grpc

from rill.client.errors import ServerError
from rill.v1 import rill_pb2 as pb


def symbol_count(message: pb.GenerateResponse) -> int:
    """Return how many symbols the message's text has."""
    return len(message.symbol_lengths) or len(message.text)


def text_position(message: pb.GenerateResponse) -> int:
    """Return where the message's text begins, in code points of the stream's text."""
    return message.text_position or message.position


def checked_lengths(message: pb.GenerateResponse) -> list[int]:
    """Return the lengths of the message's symbols; none if each is a code point. Raises ServerError for bad ones."""
    lengths = list(message.symbol_lengths)
    if lengths and (sum(lengths) != len(message.text) or 0 in lengths):
        raise ServerError(grpc.StatusCode.INTERNAL, "the lengths of the symbols in a message do not fit its text")
    return lengths


def code_points(lengths: Sequence[int], count: int) -> int:
    """Return how many code points the first `count` symbols have."""
    return sum(lengths[:count]) if lengths else count


def symbols_of(text: str, lengths: Sequence[int]) -> list[str]:
    """Split a text into its symbols."""
    return [text[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))] if lengths else list(text)


class SymbolText:
    """A text that grows at its end and is shortened at its beginning; its len is in symbols."""

    def __init__(self) -> None:
        self.text = ""
        self._lengths: list[int] = []  # of the symbols; none if each is a code point

    def __len__(self) -> int:
        return len(self._lengths) or len(self.text)

    def append(self, text: str, lengths: Sequence[int]) -> None:
        """Add a text with symbols of these lengths."""
        self.text += text
        self._lengths += lengths

    def drop(self, count: int) -> None:
        """Remove the first `count` symbols."""
        self.text = self.text[code_points(self._lengths, count) :]
        del self._lengths[:count]

    def has(self, text: str, lengths: Sequence[int], at: int) -> bool:
        """Tell whether a text with symbols of these lengths is what stands here from symbol `at` on."""
        is_here = self.text.startswith(text, code_points(self._lengths, at))
        return is_here and self._lengths[at : at + len(lengths)] == lengths
