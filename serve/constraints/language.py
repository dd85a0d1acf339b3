"""Regular languages over the characters of a model, as the pieces of a regular expression."""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_LENGTH = 1 << 16  # characters, with all counts written out
MAX_DEPTH = (
    80  # alternatives and counts inside one another: outlines-core reads no more than 250 levels, three for each
)
_MAX_PIECES = 4 * MAX_LENGTH


class SizeError(Exception):
    """A language would be too large; the message follows its name."""


@dataclass(frozen=True)
class Language:
    """The texts that match. Pieces that are numbers are classes, as masks of characters (`Characters`).

    `size` counts classes, with all counts written out, `depth` alternatives and counts inside one another. If the model
    has no such text, `needs` says which characters it lacks: any of them may help.
    """

    pieces: tuple[str | int, ...]
    size: int
    depth: int = 0
    needs: tuple[str, ...] = ()


EMPTY = Language((), 0)  # the empty text only


def one_of(mask: int, what: str) -> Language:
    """Return the texts of one character of a mask; `what` names these characters for a person."""
    return Language((mask,), 1) if mask else Language((), 0, needs=(what,))


def sequence(parts: Iterable[Language]) -> Language:
    """Return texts of all parts, one after the other. Raises SizeError."""
    pieces: list[str | int] = []
    size, depth = 0, 0
    needs: tuple[str, ...] = ()
    for part in parts:
        pieces += part.pieces
        size, depth = size + part.size, max(depth, part.depth)
        needs = needs or part.needs
        _check_size(size, pieces)
    return Language((), 0, needs=needs) if needs else Language(tuple(pieces), size, depth)


def either(parts: Iterable[Language]) -> Language:
    """Return the texts of any part, of which there must be one. Raises SizeError."""
    pieces: list[str | int] = []
    size, depth = 0, 0
    needs: list[str] = []
    for part in parts:
        needs += part.needs
        if not part.needs:
            pieces += ["|" if pieces else "(?:", *part.pieces]
            size, depth = size + part.size, max(depth, part.depth)
        _check_size(size, pieces)
    if not pieces:
        return Language((), 0, needs=tuple(needs))
    return Language((*pieces, ")"), size, _checked_depth(depth + 1))


def repeat(part: Language, low: int, high: int | None) -> Language:
    """Return texts of `low` to `high` times the part; None is without end. Raises SizeError."""
    most = max(low, 1) if high is None else high
    if most == 0 or (part.needs and not low):
        return EMPTY
    if part.needs or not part.pieces:
        return part
    _check_size(max(part.size, 1) * most, ())
    pieces = ("(?:", *part.pieces, f"){{{low},{'' if high is None else high}}}")
    return Language(pieces, part.size * most, _checked_depth(part.depth + 1))


def _check_size(size: int, pieces: list[str | int] | tuple[()]) -> None:
    if size > MAX_LENGTH or len(pieces) > _MAX_PIECES:
        raise SizeError(f"is longer than {MAX_LENGTH:,} characters, with all counts written out")


def _checked_depth(depth: int) -> int:
    if depth > MAX_DEPTH:
        raise SizeError("has too many parts inside one another")
    return depth
