"""Stop strings: where in a text as it comes the first of them is complete, and what may be the beginning of one."""

from collections.abc import Sequence


class StopFinder:
    """Looks for `stops` in a text that arrives in pieces; with `include`, the stop is part of the text.

    Text that may be the beginning of a stop is held back until that is known. `partial_stop` is the end of a text that
    may be such a beginning and was released nevertheless, because the text had reached its limit.
    """

    def __init__(self, stops: Sequence[str], include: bool = False, partial_stop: str = "") -> None:
        self._stops, self._include = stops, include
        self._held, self._out = partial_stop, len(partial_stop)  # so many characters of it have gone out

    @property
    def partial_stop(self) -> str:
        """The end of what has gone out that may be the beginning of a stop."""
        return self._held[: self._out]

    def feed(self, new: str) -> tuple[str, bool]:
        """What goes out now that `new` has come, and whether a stop ends it.

        The first to be complete ends the text; of several, the longest.
        """
        text, out = self._held + new, self._out
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self._held = "" if self._include else text[start:out]
            self._out = len(self._held)
            return text[out : end if self._include else start], True
        start = len(text) - max(_partial_length(text, stop) for stop in self._stops)
        self._held, self._out = text[start:], max(out - start, 0)
        return text[out:start], False

    def flush(self) -> str:
        """What is held back: it goes out after all."""
        rest, self._out = self._held[self._out :], len(self._held)
        return rest


def _partial_length(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, which is not in the text."""
    at = text.find(stop[0], max(len(text) - len(stop), 0))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return len(text) - at if at >= 0 else 0
