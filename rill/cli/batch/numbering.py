"""The texts of a run of `rill batch`, numbered from 0: those of line 1 first, each line's samples in their order."""

from array import array

MOST_TEXTS = 100_000_000  # of a run: each takes 8 bytes of memory, and 11 to 21 more with --unique


class Numbering:
    """How many texts each line of an input has, from line 1."""

    def __init__(self, lines: int = 0) -> None:
        """Begin with `lines` lines of one text each."""
        self.lines = self.texts = lines
        self._starts: array[int] | None = None  # the first text of each line; None while each line has one text

    def add_line(self, samples: int) -> None:
        """Add a line of so many texts. Raises ValueError when the run has too many."""
        if self.texts + samples > MOST_TEXTS:
            raise ValueError(f"a run has at most {MOST_TEXTS:,} texts; split the input")
        if samples > 1 and self._starts is None:
            self._starts = array("q", range(self.lines))
        if self._starts is not None:
            self._starts.append(self.texts)
        self.lines += 1
        self.texts += samples

    def texts_of(self, line: int) -> range:
        """Return the numbers of the texts of a line."""
        if self._starts is None:
            return range(line - 1, line)
        end = self._starts[line] if line < self.lines else self.texts
        return range(self._starts[line - 1], end)

    def number(self, line: object, index: object) -> int | None:
        """Return the number of sample `index` of a line; None if there is none, or these are not whole numbers."""
        if type(line) is not int or type(index) is not int or not 1 <= line <= self.lines:
            return None
        texts = self.texts_of(line)
        return texts[index] if 0 <= index < len(texts) else None
