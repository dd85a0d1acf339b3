"""A model's vocabulary as its page has it in model.json."""

from typing import Any

from rill.page.errors import PageError
from rill.symbol_patterns import PatternError, translate
from rill.vocabulary import REGEX, Vocabulary


def described(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the symbols, what is special about their ids, and how texts are cut.

    The pattern is in the syntax of JavaScript with the flag `u`. Raises PageError if it cannot be.
    """
    kind, _, pattern = vocabulary.tokenizer.partition(":")
    if vocabulary.tokenizer.startswith(REGEX):
        try:
            pattern = translate(pattern, lambda code: f"\\u{{{code:x}}}")
        except PatternError as error:
            raise PageError(f"it cuts texts in a way that browsers cannot: {error}") from None
    return {
        "tokenizer": kind,
        "pattern": pattern,
        "start_id": vocabulary.start_id,
        "has_start": bool(vocabulary.start),
        "end_ids": list(vocabulary.end_ids),
        "never_ids": list(vocabulary.never_ids),
        "unknown_id": vocabulary.unknown_id,
        "vocabulary": list(vocabulary.symbols),
    }
