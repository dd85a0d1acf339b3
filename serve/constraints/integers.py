"""Regular expressions for the integers of a range."""

_ANY = r"-?(0|[1-9][0-9]*)"


def between(low: int | None, high: int | None) -> str:
    """Return a regular expression for the integers from `low` to `high`, of which there is one; None is without end."""
    if low is None and high is None:
        return _ANY
    parts = []
    if low is None or low < 0:
        least = max(1, -high) if high is not None else 1
        parts += ["-" + part for part in _from(least, None if low is None else -low)]
    if high is None or high >= 0:
        parts += _from(max(0, low) if low is not None else 0, high)
    return "|".join(parts)


def _from(low: int, high: int | None) -> list[str]:
    """The same from `low` >= 0 on."""
    parts = []
    digits = len(str(low))
    while high is None or low <= high:
        last = 10**digits - 1
        parts += _equally_long(str(low), str(last if high is None else min(last, high)))
        if high is None:
            return [*parts, f"[1-9][0-9]{{{digits},}}"]
        low, digits = last + 1, digits + 1
    return parts


def _equally_long(low: str, high: str) -> list[str]:
    """The same for numbers with as many digits, which may begin with 0."""
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return [f"[0-9]{{{len(low)}}}"]
    if low[0] == high[0]:
        return [low[0] + part for part in (_equally_long(low[1:], high[1:]) if rest else [""])]
    if not rest:
        return [f"[{low}-{high}]"]
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts += [low[0] + part for part in _equally_long(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        parts += [high[0] + part for part in _equally_long("0" * rest, high[1:])]
        last -= 1
    return parts + [f"[{first}-{last}][0-9]{{{rest}}}"] * (first <= last)
