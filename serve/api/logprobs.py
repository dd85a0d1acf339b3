"""Log-probabilities as protobuf bytes: building an object for each of 20 alternatives would block the event loop.

The encoding is that of `CharLogprob` in rill.proto (https://protobuf.dev/programming-guides/encoding/): a field is its
number and wire type in a byte, then its value.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rill.serve.engine.types import Logprobs
from rill.vocabulary import Vocabulary

_CHARACTER, _LOGPROB, _ALTERNATIVE = b"\x0a", b"\x15", b"\x1a"  # 1: string, 2: float, 3: message
LOGPROBS = b"\x32"  # 6: message, of GenerateResponse
TOP = b"\x22"  # 4: message, of ScoreResponse


class LogprobEncoder:
    """Encodes log-probabilities for the symbols of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        fields = [_character(symbol) + _LOGPROB for symbol in vocabulary.symbols]
        self._alternatives = [_ALTERNATIVE + varint(len(field) + 4) + field for field in fields]
        for index in vocabulary.never_ids:
            self._alternatives[index] = b""

    def encode(self, symbols: Iterable[str], logprobs: Logprobs, count: int, tag: bytes = LOGPROBS) -> bytes:
        """Return the entries of the field `tag`: one per symbol, each with up to `count` alternatives."""
        chosen = _floats(logprobs.chosen)
        tokens = logprobs.tokens[:, :count].tolist()
        width = len(tokens[0]) if tokens else 0
        values = _floats(logprobs.values[:, :count])
        parts: list[bytes] = []
        for at, symbol in enumerate(symbols):
            entry = [_character(symbol), _LOGPROB, chosen[at]]
            for token, value in zip(tokens[at], values[at * width : (at + 1) * width], strict=True):
                if field := self._alternatives[token]:
                    entry += (field, value)
            joined = b"".join(entry)
            parts += (tag, varint(len(joined)), joined)
        return b"".join(parts)


def _character(character: str) -> bytes:
    encoded = character.encode()
    return _CHARACTER + varint(len(encoded)) + encoded


def _floats(values: NDArray[np.float32]) -> list[bytes]:
    """Return each value as four bytes, little-endian."""
    encoded = values.astype("<f4").tobytes()
    return [encoded[at : at + 4] for at in range(0, len(encoded), 4)]


def varint(value: int) -> bytes:
    """Encode a length, seven bits per byte."""
    if value < 128:
        return bytes([value])
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
