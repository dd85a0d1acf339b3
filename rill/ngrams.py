"""N-gram input tables: which row of a table belongs to the last symbols that a model has read.

A model with `ngrams` = n adds to the first layer's input, for each order k = 2 … n, a row of a table. The row at
position t belongs to the symbols x[t - k + 1] … x[t], the last k that were read, x[t] among them:

    row = (m[0] * x[t] + m[1] * x[t - 1] + … + m[k - 1] * x[t - k + 1]) mod rows

Where all k-grams of V symbols fit into EXACT_ROWS rows, the table has V^k rows and m[i] = V^i: the row is the k-gram
read as a number in base V, the oldest symbol first, and no two k-grams share a row. Elsewhere the table has as many
rows as the model says, and m[i] is the prime PRIMES[i]: k-grams share rows.

Before the first symbol of a text, all earlier symbols are symbol 0. All numbers are below 2^63, so int64 holds them.
"""

EXACT_ROWS = 65_536
DEFAULT_ROWS = 8_192
MAX_NGRAMS = 8
# Below 2^31, without a common divisor with any likely number of rows; arbitrary otherwise.
PRIMES = (
    2_147_483_629, 1_597_334_699, 805_306_457, 1_299_709_121,
    402_653_189, 1_812_433_261, 201_326_611, 982_451_653,
)  # fmt: skip


def is_exact(order: int, symbols: int) -> bool:
    """Whether each of the n-grams of this `order` has a row of its own, for a vocabulary of so many symbols."""
    return int(symbols**order) <= EXACT_ROWS


def rows_of(order: int, symbols: int, hashed_rows: int) -> int:
    """The number of rows of the table of this `order`; `hashed_rows` if n-grams share rows."""
    return int(symbols**order) if is_exact(order, symbols) else hashed_rows


def multipliers(order: int, symbols: int) -> tuple[int, ...]:
    """The numbers that the last `order` symbols are multiplied by, the newest first."""
    if is_exact(order, symbols):
        return tuple(symbols**age for age in range(order))
    return PRIMES[:order]


def row_of(ngram: tuple[int, ...], symbols: int, hashed_rows: int) -> int:
    """The row of an n-gram, symbol ids with the oldest first: the definition, for tests and references."""
    order = len(ngram)
    total = sum(factor * symbol for factor, symbol in zip(multipliers(order, symbols), reversed(ngram), strict=True))
    return total % rows_of(order, symbols, hashed_rows)


def folded_orders(symbols: int, ngrams: int) -> tuple[int, ...]:
    """The orders whose rows a serving graph reads: the longest exact one, which includes the shorter ones, at least 1;
    then all in which n-grams share rows.
    """
    exact = max(order for order in range(1, ngrams + 1) if order == 1 or is_exact(order, symbols))
    return exact, *range(exact + 1, ngrams + 1)


def folded_rows(symbols: int, ngrams: int, hashed_rows: int) -> int:
    """The number of rows of these orders."""
    exact, *hashed = folded_orders(symbols, ngrams)
    rows: int = symbols**exact
    return rows + len(hashed) * hashed_rows
