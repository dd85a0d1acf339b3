"""Binary subtraction as tagging: each step reads one digit of both numbers; its label is a digit of the difference."""

import random
import re
from itertools import product

from rill.train.errors import CorpusError

NAME = "subtraction"
MAX_BITS = 64
ALL_PAIRS_UP_TO = 8  # bits: 32,896 pairs
SAMPLED_PAIRS = 2000


def subtraction(spec: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Symbols and labels of x - y for many x >= y, every number with exactly as many digits as `spec` says.

    `subtraction:4` has 4 binary digits, `subtraction:1-8` all lengths from 1 to 8, shortest first. Steps go from the
    least significant digit to the most, as borrows do; `:msb` at the end reverses them, which takes a network that
    reads in both directions. The symbol of a step is the digit of x followed by that of y ("00", "01", "10", "11"),
    its label the digit of x - y ("0", "1"). Up to 8 digits there are all pairs; beyond, 2,000 different ones, always
    the same. Raises CorpusError for any other spec.
    """
    form = re.fullmatch(rf"{NAME}:([0-9]{{1,2}})(?:-([0-9]{{1,2}}))?(:msb)?", spec)
    shortest, longest = (int(form[1]), int(form[2] or form[1])) if form else (0, 0)
    if not form or not 1 <= shortest <= longest <= MAX_BITS:
        raise CorpusError(
            f"{spec!r} is not a subtraction corpus; write {NAME}:BITS or {NAME}:FEWEST-MOST, with 1 to {MAX_BITS} bits,"
            " and :msb after it for the most significant digit first"
        )
    direction = 1 if form[3] else -1
    return [_tagged(x, y, bits, direction) for bits in range(shortest, longest + 1) for x, y in _pairs(bits)]


def _tagged(x: int, y: int, bits: int, direction: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    digits_x, digits_y, difference = (format(number, f"0{bits}b")[::direction] for number in (x, y, x - y))
    return tuple(a + b for a, b in zip(digits_x, digits_y, strict=True)), tuple(difference)


def _pairs(bits: int) -> list[tuple[int, int]]:
    """Different pairs (x, y) with x >= y, ascending."""
    if bits <= ALL_PAIRS_UP_TO:
        return [(x, y) for x, y in product(range(2**bits), repeat=2) if x >= y]
    generator = random.Random(bits)
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < SAMPLED_PAIRS:
        # Uniform numbers would nearly all be large, so the number of significant digits is drawn first.
        significant = generator.randint(1, bits)
        one, other = generator.getrandbits(significant), generator.getrandbits(significant)
        pairs.add((max(one, other), min(one, other)))
    return sorted(pairs)
