"""Between text and symbol ids, whole arrays at a time.

Inside the server a text is coded: a str with one code point for each symbol. So all that counts, searches and cuts
text does so by symbols. Where symbols are characters, coded text is the text itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary

Ids = NDArray[np.int64]

SHOWN_UNKNOWN = "\ufffd"  # in place of `<unk>`, which no graph ever generates
NO_SYMBOL = "\U0010ffff"  # in coded text: that of no model
_SURROGATES = range(0xD800, 0xE000)  # no code points of texts


class TextCodec:
    """Converts coded text to ids and back for one vocabulary, without a step of Python per symbol.

    `is_text`: coded text is the text itself. Otherwise symbol i is the i-th code point, without surrogates.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        symbols = vocabulary.symbols
        self.is_text = vocabulary.are_characters
        self._unknown_id = vocabulary.unknown_id
        self.end_ids: Ids = np.array(vocabulary.end_ids, np.int64)
        if self.is_text:
            hidden = {*vocabulary.never_ids, *vocabulary.end_ids}  # which no text has
            self._code_points = np.array(
                [ord(SHOWN_UNKNOWN if index in hidden else symbol) for index, symbol in enumerate(symbols)], "<u4"
            )
            known = [index for index in range(len(symbols)) if index not in hidden]
            self._texts: tuple[str, ...] = ()
        else:
            known = list(range(len(symbols)))
            self._code_points = np.array(known, "<u4")
            self._code_points[_SURROGATES.start :] += len(_SURROGATES)
            shown = {UNKNOWN: SHOWN_UNKNOWN, vocabulary.start: "", **dict.fromkeys(vocabulary.ends, "")}
            self._texts = tuple(shown.get(symbol, symbol) for symbol in symbols)
        self.longest = max(map(len, self._texts), default=1)  # code points of a symbol
        self._ids = np.full(int(self._code_points.max()) + 2, -1, np.int64)  # the last entry is for all beyond
        self._ids[self._code_points[known]] = known

    def code(self, ids: Sequence[int]) -> str:
        """The coded text of `ids`."""
        return self._code_points[ids].tobytes().decode("utf-32-le") if ids else ""

    def symbols(self, coded: str) -> Sequence[str]:
        """The text of each symbol of `coded`; that of a start or end symbol is empty."""
        return coded if self.is_text else list(map(self._texts.__getitem__, self.encode(coded).tolist()))

    def encode(self, text: str) -> Ids:
        """The ids of coded `text`, int64 [symbols].

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
        """The coded texts in the columns of `ids`, int64 [time, rows]: `starts[i]` to `ends[i]` of column i."""
        time = len(ids)
        text = self._code_points[ids.T].tobytes("C").decode("utf-32-le")  # of all columns, one after another
        spans = zip(range(0, len(text), time), starts.tolist(), ends.tolist(), strict=True)
        return [text[at + start : at + end] for at, start, end in spans]


@dataclass(frozen=True)
class GivenText:
    """A coded text from `begin` on, whose ids are made part by part: at once they would take eight bytes a symbol.

    Of a short text `whole` may have the ids, from its beginning. `end` is the id of an end symbol that follows, if any.
    """

    text: str
    codec: TextCodec
    begin: int = 0
    whole: Ids | None = None
    end: int | None = None

    def __len__(self) -> int:
        return len(self.text) - self.begin + (self.end is not None)

    def ids(self, start: int, end: int) -> Ids:
        """The ids of the symbols `start` to `end`. Raises UnknownCharacterError, with the position in the text."""
        start, end = self.begin + start, self.begin + end
        try:
            ids = self.codec.encode(self.text[start:end]) if self.whole is None else self.whole[start:end]
        except UnknownCharacterError as error:
            raise UnknownCharacterError(error.character, start + error.position) from None
        return np.append(ids, self.end) if self.end is not None and start <= len(self.text) < end else ids


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
