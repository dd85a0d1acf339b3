"""Between text and symbol ids, whole arrays at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary

Ids = NDArray[np.int64]


class TextCodec:
    """Converts text to ids and back for one vocabulary, without a step of Python per character."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        symbols = vocabulary.symbols
        self._unknown_id = vocabulary.unknown_id
        # U+FFFD stands for `<unk>`, which no graph ever generates.
        self._code_points = np.array([0xFFFD if symbol == UNKNOWN else ord(symbol) for symbol in symbols], "<u4")
        self._ids = np.full(int(self._code_points.max()) + 2, -1, np.int64)  # the last entry is for all beyond
        known = [index for index, symbol in enumerate(symbols) if symbol != UNKNOWN]
        self._ids[self._code_points[known]] = known

    def encode(self, text: str) -> Ids:
        """The ids of `text`, int64 [characters].

        Raises UnknownCharacterError for a character without an id, unless there is `<unk>` to stand for it.
        """
        code_points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids: Ids = self._ids.take(code_points, mode="clip")
        if text and ids.min() < 0:
            missing = ids < 0
            if self._unknown_id is None:
                position = int(missing.argmax())
                raise UnknownCharacterError(text[position], position)
            ids[missing] = self._unknown_id
        return ids

    def decode(self, ids: Ids, starts: Ids, ends: Ids) -> list[str]:
        """The texts in the columns of `ids`, int64 [time, rows]: characters `starts[i]` to `ends[i]` of column i."""
        time = len(ids)
        text = self._code_points[ids.T].tobytes("C").decode("utf-32-le")  # of all columns, one after another
        spans = zip(range(0, len(text), time), starts.tolist(), ends.tolist(), strict=True)
        return [text[at + start : at + end] for at, start, end in spans]


@dataclass(frozen=True)
class GivenText:
    """A text from `begin` on, whose ids are made part by part: at once they would take eight bytes a character.

    Of a short text `whole` may have the ids, from its beginning.
    """

    text: str
    codec: TextCodec
    begin: int = 0
    whole: Ids | None = None

    def __len__(self) -> int:
        return len(self.text) - self.begin

    def ids(self, start: int, end: int) -> Ids:
        """The ids of the characters `start` to `end`. Raises UnknownCharacterError, with the position in the text."""
        start, end = self.begin + start, self.begin + end
        if self.whole is not None:
            return self.whole[start:end]
        try:
            return self.codec.encode(self.text[start:end])
        except UnknownCharacterError as error:
            raise UnknownCharacterError(error.character, start + error.position) from None


@dataclass(frozen=True)
class LongPrompt:
    """`head` and `text` as one array of ids; its slices are made on demand."""

    head: Ids
    text: GivenText

    def __len__(self) -> int:
        return len(self.head) + len(self.text)

    def __getitem__(self, part: slice) -> Ids:
        start, stop, _ = part.indices(len(self))
        before = len(self.head)
        return np.concatenate([self.head[start:stop], self.text.ids(max(start - before, 0), max(stop - before, 0))])
